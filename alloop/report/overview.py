"""Page of a comparison: tables and pictures in one self-contained HTML file."""

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from alloop.files import write_bytes

_TEMPLATE = Path(__file__).with_name("comparison.html.jinja")


@dataclasses.dataclass(frozen=True)
class TableCell:
    """Cell of a table; `place` is 1 for the best of its column, 2 for the second best, else 0."""

    text: str
    place: int = 0

    @property
    def is_number(self) -> bool:
        """True if the text is a number, a number with more, or a dash in its place."""
        return self.text.lstrip("+-−±")[:1].isdecimal() or self.text in ("", "-", "–")


@dataclasses.dataclass(frozen=True)
class ReportTable:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """PNG file with a description."""

    alt: str
    path: Path

    @property
    def base64(self) -> str:
        """Bytes of the file as text."""
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclasses.dataclass(frozen=True)
class ReportSection:
    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    title: str
    notes: Sequence[str]
    tables: Sequence[ReportTable]
    sections: Sequence[ReportSection]


def render_page(page: Page) -> str:
    """Return the page as HTML. Names of classes, files and methods are escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(page=page)


def write_page(page: Page, path: Path) -> None:
    """Render and write the page."""
    write_bytes(path, render_page(page).encode())
