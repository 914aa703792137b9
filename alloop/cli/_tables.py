"""Tables and sentences for a terminal and for a page. Numbers are never cut, even in a narrow terminal."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    from alloop.report.overview import ReportTable

WIDE = 120  # line width when the output goes to a file or a pipe
ENDLESS = 100_000
MARKS = {0: "", 1: " ¹", 2: " ²"}  # so that a table without colors still says which is best
STYLES = {0: "", 1: "bold", 2: "underline"}
Lines = tuple[str, list[str], list[list[tuple[str, int]]]]  # title, columns, (text, place) of every line


def print_lines(
    tables: Sequence[Lines], notes: Sequence[str], page: Path, *, left: frozenset[str] = frozenset({"method", "score"})
) -> None:
    """Print tables, then notes about them, on stdout. Columns named in `left` hold words and are left-aligned."""
    for table in tables:
        print_table(table, left=left)
    for note in notes:
        print_text(note)
    print_text(f"Tables and pictures: {page}")


def print_table(table: Lines, *, left: frozenset[str], is_plain: bool = False) -> None:
    """Print a table on stdout. Split a table that is wider than the terminal into several with the same first columns.

    Args:
        table: Title (may be empty), columns and lines.
        left: Names of the columns that hold words; they are left-aligned.
        is_plain: Leave out the lines between columns.
    """
    from rich.console import Console

    console = _console()
    width = console.width if console.is_terminal or "COLUMNS" in os.environ else ENDLESS
    for number, grid in enumerate(make_grids(table, width, left=left, is_plain=is_plain)):
        if number and is_plain:  # such a table has no lines around it
            console.print()
        # rich cuts at its console's width, so the console is made as wide as the table; the terminal folds long lines.
        Console(width=max(console.width, _width(grid))).print(grid)


def print_subjects(lines: Sequence[tuple[str, str]]) -> None:
    """Print (subject, sentence) pairs on stdout, the sentences below each other."""
    console = _console()
    for text in fold_subjects(lines, console.width):
        console.print(text, highlight=False, soft_wrap=True)


def fold_subjects(lines: Sequence[tuple[str, str]], width: int) -> "list[Text]":
    """Return (subject, sentence) pairs as paragraphs of at most `width` characters; a longer word stays whole."""
    from rich.text import Text

    indent = 2 + max((len(subject) for subject, _ in lines), default=0)
    texts = []
    for subject, sentence in lines:
        folded = textwrap.fill(
            sentence,
            max(width, indent + 20),
            initial_indent=" " * indent,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        texts.append(Text.assemble((subject.ljust(indent), "bold"), folded[indent:]))
    return texts


def print_text(text: str, style: str | None = None) -> None:
    """Print a paragraph on stdout, folded between words only. A path longer than a line is not broken."""
    console = _console()
    for line in text.split("\n"):
        folded = textwrap.fill(line, console.width, break_long_words=False, break_on_hyphens=False)
        console.print(folded, style=style, highlight=False, markup=False, soft_wrap=True)


def make_grids(table: Lines, width: int, *, left: frozenset[str], is_plain: bool = False) -> "list[Grid]":
    """Return a table as one or more that fit the width; the arguments are those of `print_table`."""
    return [_grid(part, left, is_plain) for part in _parts(table, left, is_plain, width)]


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDE)


def _parts(table: Lines, left: frozenset[str], is_plain: bool, width: int) -> Iterator[Lines]:
    """Split a table into parts that fit the width. Each part begins with the columns that name its lines."""
    _, columns, _ = table
    n_keys = max(1, next((place for place, name in enumerate(columns) if name not in left), len(columns)))
    keys, taken, title = list(range(n_keys)), list[int](), table[0]
    for place in range(n_keys, len(columns)):
        wider = _only(table, [*keys, *taken, place], title)
        if taken and _width(_grid(wider, left, is_plain)) > width:
            yield _only(table, [*keys, *taken], title)
            title, taken = "", []
        taken.append(place)
    yield _only(table, [*keys, *taken], title)


def _only(table: Lines, places: Sequence[int], title: str) -> Lines:
    _, columns, lines = table
    return title, [columns[place] for place in places], [[cells[place] for place in places] for cells in lines]


def _grid(table: Lines, left: frozenset[str], is_plain: bool) -> "Grid":
    from rich.box import HEAVY_HEAD, SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as Grid

    title, columns, lines = table
    grid = Grid(
        title=escape(title) or None,
        box=SIMPLE_HEAD if is_plain else HEAVY_HEAD,
        pad_edge=not is_plain,
        show_edge=not is_plain,
        padding=(0, 1, 0, 0) if is_plain else (0, 1),
    )
    for name in columns:
        grid.add_column(escape(name), justify="left" if name in left else "right", no_wrap=True)
    for cells in lines:
        grid.add_row(*(f"[{STYLES[p]}]{escape(text)}[/]{MARKS[p]}" if p else escape(text) for text, p in cells))
    return grid


def _width(grid: "Grid") -> int:
    """Number of characters that a line of the table needs so that no cell is cut."""
    from rich.console import Console

    console = Console(width=ENDLESS)
    return console.measure(grid).maximum


def for_page(tables: Sequence[Lines]) -> "list[ReportTable]":
    """The same tables for a page."""
    from alloop.report.overview import ReportTable, TableCell

    return [
        ReportTable(title, columns, [[TableCell(text, place) for text, place in cells] for cells in lines])
        for title, columns, lines in tables
    ]
