"""Batch sheets as spreadsheet programs leave them: any separator, encoding and line end in; UTF-8 with commas out."""

import codecs
import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from alloop.errors import LabelingError
from alloop.files import write_bytes

_NEEDED = ("label", "annotator", "key", "sha256")
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclasses.dataclass(frozen=True, slots=True)
class Sheet:
    """One file of questions.

    Attributes:
        header: Column titles as written, for example `label (or skip)`.
        rows: Cells by bare column name (`label`), in the file's order.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    mtime_ns: int


def list_sheets(folder: Path) -> list[Path]:
    """The sheets of a folder, without what spreadsheet programs hide beside them."""
    return sorted(path for path in folder.glob("*.csv") if not path.name.startswith((".", "~")))


def read_sheet(path: Path) -> Sheet:
    """Read a sheet.

    Raises:
        LabelingError: It is half-written or lacks a column; names file, line and column.
    """
    try:
        mtime_ns = path.stat().st_mtime_ns
        data = path.read_bytes()
    except OSError as error:
        raise LabelingError(f"{path} cannot be read: {error.strerror}.") from error
    text = _decode(data, path)
    lines, skipped = _without_sep_line(text)
    reader = csv.reader(io.StringIO(lines, newline=""), delimiter=_delimiter(lines), strict=True)
    try:
        header = tuple(next(reader, ()))
        names = [bare_name(title) for title in header]
        _check_header(path, names, skipped + 1)
        filled = (cells for cells in reader if any(cell.strip() for cell in cells))
        rows = tuple(_row(path, skipped + reader.line_num, names, cells) for cells in filled)
    except csv.Error as error:
        raise LabelingError(f"{path}, line {skipped + reader.line_num}: {error}.", _MEND) from error
    return Sheet(path, header, rows, mtime_ns)


def write_sheet(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write a whole sheet or leave the old one. The byte order mark makes Excel read it as UTF-8."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows([row.get(bare_name(title), "") for title in header] for row in rows)
    write_bytes(path, codecs.BOM_UTF8 + buffer.getvalue().encode())


def bare_name(title: str) -> str:
    """A column's name without the explanation in parentheses."""
    return title.partition("(")[0].strip().lower()


_MEND = "If a program is still writing it, try again; otherwise restore it from a backup or mend that line."


def _decode(data: bytes, path: Path) -> str:
    encoding = next((encoding for mark, encoding in _BOMS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            return data.decode("cp1252", errors="replace")  # "CSV" of an Excel in western Europe
        raise LabelingError(f"{path} cannot be read: {error}.", _MEND) from error


def _without_sep_line(text: str) -> tuple[str, int]:
    """Drop Excel's own `sep=;` line; the separator is found from the header anyway."""
    if re.match(r"sep=.\r?\n", text, flags=re.IGNORECASE):
        return text.partition("\n")[2], 1
    return text, 0


def _delimiter(text: str) -> str:
    """The sign that cuts the header into the most columns we know."""
    header = text.partition("\n")[0]

    def known(sign: str) -> int:
        return sum(bare_name(title.strip(' "\r')) in _NEEDED for title in header.split(sign))

    return max(",;\t", key=known)


def _check_header(path: Path, names: Sequence[str], line: int) -> None:
    if not any(names):
        raise LabelingError(f"{path} is empty.", _MEND)
    for column in _NEEDED:
        if column not in names:
            raise LabelingError(f"{path}, line {line}: the column {column!r} is missing.", _MEND)


def _row(path: Path, line: int, names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    row = dict(zip(names, (cell.strip() for cell in cells), strict=False))
    for column in _NEEDED:
        if column not in row:
            raise LabelingError(f"{path}, line {line}: the line ends before the column {column!r}.", _MEND)
    if not row["key"]:
        raise LabelingError(f"{path}, line {line}: the column 'key' is empty.", _MEND)
    if not re.fullmatch(r"[0-9a-fA-F]{64}", row["sha256"]):
        raise LabelingError(f"{path}, line {line}: the column 'sha256' holds no whole hash.", _MEND)
    return row
