"""Tables for a terminal and for a page, with the best and second best of a column marked."""

from collections.abc import Sequence
from pathlib import Path

from alloop.report.overview import Cell, Table

MARKS = {0: "", 1: " ¹", 2: " ²"}  # so that a table without colors still says which is best
Lines = tuple[str, list[str], list[list[tuple[str, int]]]]  # title, columns, (text, place) of every line


def print_lines(
    tables: Sequence[Lines], notes: Sequence[str], page: Path, *, left: frozenset[str] = frozenset({"method", "score"})
) -> None:
    """Tables and what is to be known about them, on stdout; the columns named in `left` are words."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file has no width, and cut figures are worth nothing
    styles = {0: "", 1: "bold", 2: "underline"}
    for title, columns, lines in tables:
        table = Grid(title=title)
        for name in columns:
            table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
        for cells in lines:
            table.add_row(*(f"[{styles[p]}]{escape(text)}[/]{MARKS[p]}" if p else escape(text) for text, p in cells))
        console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    console.print(f"Tables and pictures: {page}", highlight=False, markup=False, soft_wrap=True)


def for_page(tables: Sequence[Lines]) -> list[Table]:
    """The same tables for a page."""
    return [
        Table(title, columns, [[Cell(text, place) for text, place in cells] for cells in lines])
        for title, columns, lines in tables
    ]
