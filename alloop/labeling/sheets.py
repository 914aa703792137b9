"""Batch sheets: read in every format of spreadsheet programs, written as UTF-8 with commas."""

import codecs
import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from alloop.errors import LabelingError
from alloop.files import write_bytes
from alloop.spreadsheet import MEND, Row, bare_name, read_table

_NEEDED = ("label", "annotator", "key", "sha256")


@dataclasses.dataclass(frozen=True, slots=True)
class Sheet:
    """Sheet of questions.

    Attributes:
        header: Column titles as written, for example `label (or skip)`.
        rows: Cells by bare column name (`label`), in the file's order.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    mtime_ns: int


def list_sheets(folder: Path) -> list[Path]:
    """List the sheets of a folder, without hidden files of spreadsheet programs."""
    return sorted(path for path in folder.glob("*.csv") if not path.name.startswith((".", "~")))


def read_sheet(path: Path) -> Sheet:
    """Read a sheet.

    Raises:
        LabelingError: The sheet is incomplete or lacks a column; names file, line and column.
    """
    try:
        mtime_ns = path.stat().st_mtime_ns
    except OSError as error:
        raise LabelingError(f"{path} cannot be read: {error.strerror}.") from error
    table = read_table(path, LabelingError, _NEEDED, takes=("file",))
    names = [bare_name(title) for title in table.titles]
    for row in table.rows:
        _check(path, row)
    rows = tuple(_by_bare_name(names, row) for row in table.rows)
    return Sheet(path, table.titles, rows, mtime_ns)


def write_sheet(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write a sheet atomically. The byte order mark makes Excel read it as UTF-8."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows([row.get(bare_name(title), "") for title in header] for row in rows)
    write_bytes(path, codecs.BOM_UTF8 + buffer.getvalue().encode())


def _by_bare_name(names: Sequence[str], row: Row) -> Mapping[str, str]:
    cells = dict(zip(names, row.cells.values(), strict=False))
    return {**cells, "file": row.file} if "file" in cells else cells


def _check(path: Path, row: Row) -> None:
    for column in _NEEDED:
        if column not in row.cells:
            raise LabelingError(f"{path}, line {row.line}: the line ends before the column {column!r}.", MEND)
    if not row.cells["key"]:
        raise LabelingError(f"{path}, line {row.line}: the column 'key' is empty.", MEND)
    if not re.fullmatch(r"[0-9a-fA-F]{64}", row.cells["sha256"]):
        raise LabelingError(f"{path}, line {row.line}: the column 'sha256' holds no whole hash.", MEND)
