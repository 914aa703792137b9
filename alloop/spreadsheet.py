"""Reading of tables from people, with any separator, encoding and line end that spreadsheet programs write."""

import codecs
import csv
import dataclasses
import functools
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from alloop.errors import AlloopError
from alloop.names import clean

_log = logging.getLogger("alloop")
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_SEPARATORS = ",;\t|"
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods; .xls
MEND = "If a program is still writing the file, try again; otherwise correct that line or restore it from a backup."


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    Attributes:
        line: Number of the line in the file, from 1; the last one if a cell holds line ends.
        cells: Cleaned cells by column; a line that ends early has fewer.
        file: Cell of the column `file` exactly as written, since cleaning could change a file's name.
    """

    line: int
    cells: Mapping[str, str]
    file: str

    def get(self, column: str) -> str:
        """Return a cell; empty if the line ends before it."""
        return self.cells.get(column, "")


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A header and its rows.

    Attributes:
        titles: Header cells as written.
        columns: Names of the columns: a requested column has the requested spelling, other titles are only cleaned.
        line: Number of the header's line.
    """

    titles: tuple[str, ...]
    columns: tuple[str, ...]
    line: int
    rows: tuple[Row, ...]


def read_table(
    path: Path,
    refusal: type[AlloopError],
    needs: Sequence[str],
    *,
    one_of: Sequence[str] = (),
    takes: Sequence[str] = (),
) -> Table:
    """Read a table that any spreadsheet program saved.

    The first line that is not empty is the header. In titles of requested columns, capitals, blanks around them and an
    explanation in parentheses do not matter. Empty lines, and empty columns without a title, are skipped.

    Args:
        path: File to read.
        refusal: Class of the errors.
        needs: Columns that must exist.
        one_of: Columns of which at least one must exist.
        takes: Columns that may exist.

    Raises:
        AlloopError: An error of the class `refusal`: the file cannot be read or a column is missing. Names file, line
            and column.
    """
    text = _decode(path, refusal)
    body, separator = _after_sep_line(text)
    known = tuple(dict.fromkeys((*needs, *one_of, *takes)))
    lines = _lines(path, refusal, body, separator or _separator(body, known), first=1 + (body is not text))
    line, titles = next(lines, (1, []))
    if not titles:
        raise refusal(f"{path} is empty.", f"It needs {_wanted(needs, one_of)}. {MEND}")
    rows = list(lines)
    titles, columns = _columns(path, line, titles, known, [cells for _, cells in rows], refusal)
    _check_columns(path, line, columns, needs, one_of, refusal)
    at = columns.index("file") if "file" in columns else None
    return Table(tuple(titles), tuple(columns), line, tuple(_row(path, *row, columns, at, refusal) for row in rows))


def bare_name(title: str) -> str:
    """Return a column's title in lower case, without an explanation in parentheses."""
    return clean(title.partition("(")[0]).lower()


def _decode(path: Path, refusal: type[AlloopError]) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise refusal(f"{path} cannot be read: {error.strerror or error}.") from error
    if data.startswith(_WORKBOOKS):
        raise refusal(f"{path} is a workbook of a spreadsheet program.", "Save it as CSV (UTF-8) and name that file.")
    encoding = next((encoding for mark, encoding in _BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise refusal(f"{path} cannot be read: {error}.", MEND) from error
        _say_guessed(path)
        text = data.decode("cp1252", errors="replace")
    if "\0" in text:
        line = 1 + text[: text.index("\0")].count("\n")
        raise refusal(
            f"{path}, line {line}: the line holds zero bytes, so the file is not text.", "Save it as CSV (UTF-8)."
        )
    return text


@functools.cache
def _say_guessed(path: Path) -> None:
    """Warn once for each file, since sheets are read several times in a run."""
    _log.warning(
        "%s is not UTF-8 and was read as Windows-1252, as Excel writes it in western Europe. If its letters look "
        "wrong, save it as CSV UTF-8.",
        path,
    )


def _after_sep_line(text: str) -> tuple[str, str | None]:
    """Return the text without Excel's line `sep=;`, and the separator that the line names; None without such a line."""
    found = re.match(r'"?sep=(.)"?[^\S\r\n\t]*(\r\n|\n|\r)', text, flags=re.IGNORECASE)
    return (text[found.end() :], found[1]) if found else (text, None)


def _separator(text: str, known: Sequence[str]) -> str:
    """Return the separator that gives the most known columns in the header; of equals, the most columns."""
    header = next((line for line in io.StringIO(text, newline="") if line.strip(f'{_SEPARATORS}" \r\n')), "")

    def fit(sign: str) -> tuple[int, int]:
        titles = next(csv.reader([header], delimiter=sign), [])
        return sum(bool(_meant(titles, name)) for name in known), len(titles)

    return max(_SEPARATORS, key=fit)


def _lines(
    path: Path, refusal: type[AlloopError], text: str, separator: str, first: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of every line that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield first - 1 + reader.line_num, cells
    except csv.Error as error:
        raise refusal(f"{path}, line {first - 1 + reader.line_num}: {error}.", MEND) from error


def _meant(titles: Sequence[str], name: str) -> list[int]:
    """Return the positions of titles that mean a column: equal, else equal but for capitals, else with a remark."""
    for spelled in (clean, _lower, bare_name):
        wanted = name if spelled is clean else name.lower()
        if places := [place for place, title in enumerate(titles) if spelled(title) == wanted]:
            return places
    return []


def _lower(title: str) -> str:
    return clean(title).lower()


def _columns(
    path: Path,
    line: int,
    titles: Sequence[str],
    known: Sequence[str],
    rows: Sequence[Sequence[str]],
    refusal: type[AlloopError],
) -> tuple[list[str], list[str]]:
    """Return titles and column names, without empty columns at the end."""
    n = len(titles)
    while n and not titles[n - 1].strip() and not any(cells[n - 1].strip() for cells in rows if len(cells) >= n):
        n -= 1
    columns = [clean(title) or f"column {place}" for place, title in enumerate(titles[:n], start=1)]
    for name in known:
        places = _meant(titles[:n], name)
        if len(places) > 1:
            raise refusal(f"{path}, line {line}: the column {name!r} appears twice.", "Remove one of the two.")
        for place in places:
            columns[place] = name
    return list(titles[:n]), columns


def _check_columns(
    path: Path,
    line: int,
    columns: Sequence[str],
    needs: Sequence[str],
    one_of: Sequence[str],
    refusal: type[AlloopError],
) -> None:
    missing = next((repr(name) for name in needs if name not in columns), "")
    if not missing and one_of and not set(one_of) & set(columns):
        missing = " or ".join(map(repr, one_of))
    if missing:
        raise refusal(
            f"{path}, line {line}: the column {missing} is missing; it has the columns {', '.join(columns)}.",
            f"It needs {_wanted(needs, one_of)}.",
        )


def _wanted(needs: Sequence[str], one_of: Sequence[str]) -> str:
    words = [repr(name) for name in needs]
    if one_of:
        words.append(f"one of {' and '.join(map(repr, one_of))}")
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _row(
    path: Path, line: int, cells: Sequence[str], columns: Sequence[str], at: int | None, refusal: type[AlloopError]
) -> Row:
    if any(cell.strip() for cell in cells[len(columns) :]):
        raise refusal(
            f"{path}, line {line}: it has {len(cells)} cells, and the header has {len(columns)} columns.",
            "Put cells that hold the separator in quotes, or remove the extra cells.",
        )
    written = cells[at] if at is not None and at < len(cells) else ""
    return Row(line, dict(zip(columns, map(clean, cells), strict=False)), written)
