"""The page of a comparison: complete, self-contained, and nothing but text where text was given."""

import base64
import re
from pathlib import Path

import pytest

from alloop.report.overview import Page, Picture, ReportSection, ReportTable, TableCell, render_page, write_page


def _page(tmp_path: Path, title: str = "Methods compared") -> Page:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG pixels")
    table = ReportTable(
        "Raw", ["method", "ACC %"], [[TableCell("SL1H"), TableCell("80.0 ± 1.0", place=1)]], note="a note"
    )
    return Page(title, ["first"], [table], [ReportSection("SL1H", "one head", [Picture("Reliability", picture)])])


def test_pictures_are_inside_the_page_and_nothing_else_is_loaded(tmp_path: Path):
    text = render_page(_page(tmp_path))

    encoded = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert [base64.b64decode(each) for each in encoded] == [b"\x89PNG pixels"]
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert not re.search(r"https?://|@import|<script|<link", text)


def test_the_best_of_a_column_is_marked(tmp_path: Path):
    assert '<td class="number best">80.0 ± 1.0</td>' in render_page(_page(tmp_path))


@pytest.mark.parametrize(("text", "is_number"), [("80.0 ± 1.0", True), ("−1.2", True), ("–", True), ("margin", False)])
def test_numbers_stand_on_the_right_and_words_on_the_left(text: str, *, is_number: bool):
    table = ReportTable("Raw", ["method", "says"], [[TableCell("SL1H"), TableCell(text)]])

    shown = render_page(Page("Methods", [], [table], []))

    assert ('<th class="number">says</th>' in shown) == is_number
    assert (f'<td class="number">{text}</td>' in shown) == is_number


def test_names_are_text_and_never_markup(tmp_path: Path):
    text = render_page(_page(tmp_path, title="<script>alert(1)</script> & co"))

    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in text


def test_the_page_is_written_as_utf8(tmp_path: Path):
    write_page(_page(tmp_path, title="Größe"), tmp_path / "index.html")

    assert "<title>Größe</title>" in (tmp_path / "index.html").read_text(encoding="utf-8")
