"""Tables as spreadsheet programs and people write them."""

import logging
from pathlib import Path

import pytest

from alloop.errors import LabelError
from alloop.spreadsheet import Table, read_table

ROWS = [("a.png", "Müller"), ("b.png", "chat été")]


def read(path: Path, text: str | bytes, encoding: str = "utf-8", **wanted: list[str]) -> Table:
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_table(path, LabelError, ["label"], one_of=["file", "sha256"], **wanted)


def cells(table: Table) -> list[tuple[str, str]]:
    return [(row.file.strip(), row.get("label")) for row in table.rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("first", ["", "sep", "\n"])
def test_whatever_a_program_saves_is_read(tmp_path: Path, encoding: str, separator: str, end: str, first: str):
    lines = [f"sep={separator}"] if first == "sep" else [""] if first else []
    lines += [separator.join(row) for row in [(" File", "LABEL "), *ROWS]]
    mark = {"utf-16-le": "\ufeff", "utf-16-be": "\ufeff"}.get(encoding, "")

    table = read(tmp_path / "t.csv", mark + end.join(lines) + end, encoding)

    assert cells(table) == ROWS
    assert [row.line for row in table.rows] == [len(lines) - 1, len(lines)]


def test_empty_lines_and_empty_columns_are_passed_over(tmp_path: Path):
    table = read(tmp_path / "t.csv", ";;;;\nfile;label;;;\n\n a.png ; cat ;;;\n;;;;\n  \nb.png;dog\n")

    assert table.columns == ("file", "label")
    assert [(row.line, row.get("file"), row.get("label")) for row in table.rows] == [
        (4, "a.png", "cat"),
        (7, "b.png", "dog"),
    ]


def test_an_index_column_without_a_title_is_no_hindrance(tmp_path: Path):
    table = read(tmp_path / "t.csv", ",file,label\n0,a.png,cat\n")

    assert cells(table) == [("a.png", "cat")]
    assert table.columns[0] == "column 1"


def test_a_title_that_is_spelled_as_asked_goes_before_one_that_is_alike(tmp_path: Path):
    assert cells(read(tmp_path / "t.csv", "file,Label,label (old),label\na.png,x,y,cat\n")) == [("a.png", "cat")]


def test_a_guess_at_the_encoding_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "alloop"):
        for _ in range(2):
            assert cells(read(tmp_path / "t.csv", "file,label\na.png,Müller\n", "cp1252")) == [("a.png", "Müller")]

    assert [str(tmp_path / "t.csv") in record.message for record in caplog.records] == [True]
    assert "Windows-1252" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "t.csv is empty"),
        (b"\n\n,,\n", "t.csv is empty"),
        (b"PK\x03\x04 and so on", "t.csv is a workbook"),
        ("file,label\na.png,cat\n".encode("utf-16-le"), "line 1: the line holds zero bytes"),
        (b"\xff\xfea", "t.csv cannot be read"),
        (b"sep=;\nfile;class\n", "line 2: the column 'label' is missing; it has the columns file, class"),
        (b"\nname,label\n", "line 2: the column 'file' or 'sha256' is missing; it has the columns name, label"),
        (b"file,LABEL,Label \na,b,c\n", "line 1: the column 'label' appears twice"),
        (b"file,label\na.png,cat\nb, c.png,dog\n", "line 3: it has 3 cells, and the header has 2 columns"),
        (b'file,label\n"a.png,cat\nb.png,dog\n', "line 3: unexpected end of data"),
    ],
)
def test_what_is_no_table_is_refused_with_its_place(tmp_path: Path, data: bytes, message: str):
    with pytest.raises(LabelError, match=message) as caught:
        read(tmp_path / "t.csv", data)

    assert caught.value.hint or "cannot be read" in caught.value.message
