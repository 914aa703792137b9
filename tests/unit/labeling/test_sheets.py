import codecs
import json
import os
from pathlib import Path

import pytest

from alloop.errors import LabelingError
from alloop.labeling.csv_file import CsvAnnotator
from alloop.labeling.sheets import list_sheets, read_sheet
from alloop.labeling.single_choice import SingleChoice
from alloop.pool.picture import PICTURES
from alloop.records import ImageRef, Outcome, OutgoingTask

SHA = "ab" * 32


def make_task(key: str, predicted: str | None = None) -> OutgoingTask:
    return OutgoingTask(key, ImageRef(1, SHA, f"/pool/{key} é.png"), predicted, 0.5 if predicted else None, "m1")


def pushed(folder: Path, *keys: str, **options: object) -> CsvAnnotator:
    annotator = CsvAnnotator(folder, ("cat", "dog"), PICTURES, wording=SingleChoice(), **options)  # type: ignore[arg-type]
    annotator.open_project(None)
    list(annotator.push([make_task(key, "cat") for key in keys]))
    return annotator


def save(path: Path, text: str, encoding: str = "utf-8", at: int = 1_700_000_000) -> None:
    path.write_bytes(text.encode(encoding))
    os.utime(path, (at, at))


def answers(annotator: CsvAnnotator, mark: str | None = None) -> dict[str, tuple]:
    return {task.task.key: task.answers for page in annotator.pull(mark) for task in page.tasks}


def test_a_sheet_opens_in_excel_and_says_what_to_write(tmp_path: Path):
    pushed(tmp_path, "q1")

    data = (tmp_path / "batch-0001.csv").read_bytes()

    assert data.startswith(codecs.BOM_UTF8)
    assert data.decode("utf-8-sig").splitlines() == [
        "label (class or skip),annotator (your name),file,key,copy,sha256",
        f",,/pool/q1 é.png,q1,1,{SHA}",
    ]


def test_a_push_names_the_sheet_and_the_way_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="alloop"):
        pushed(tmp_path, "q1")

    sheet = tmp_path / "batch-0001.csv"
    assert caplog.messages == [f"{sheet}: fill in the first two columns, then run `alloop run`."]


def test_the_guess_is_shown_only_when_wanted(tmp_path: Path):
    pushed(tmp_path, "q1", preannotate=True)

    assert ",cat,q1," in (tmp_path / "batch-0001.csv").read_text(encoding="utf-8-sig")


DIALECTS = {
    "excel": (",", "\r\n", "utf-8-sig"),
    "excel, german": (";", "\r\n", "cp1252"),
    "excel, unicode text": ("\t", "\r\n", "utf-16"),
    "libreoffice": (",", "\n", "utf-8"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_whatever_a_spreadsheet_program_saves_is_read(tmp_path: Path, dialect: str):
    sign, end, encoding = DIALECTS[dialect]
    annotator = pushed(tmp_path, "q1", "q2")
    rows = [
        ["label (class or skip)", "annotator (your name)", "file", "key", "copy", "sha256"],
        ["chat été", "Anaïs", "/pool/q1.png", "q1", "1", SHA],
        ["", "", "/pool/q2.png", "q2", "1", SHA.upper()],
    ]
    save(tmp_path / "batch-0001.csv", "".join(sign.join(row) + end for row in rows), encoding)

    found = answers(annotator)

    assert [(answer.annotator, answer.value) for answer in found["q1"]] == [("Anaïs", "chat été")]
    assert found["q2"] == ()


def test_excels_separator_line_is_passed_over(tmp_path: Path):
    annotator = pushed(tmp_path, "q1")
    save(tmp_path / "batch-0001.csv", f"sep=;\r\nlabel;annotator;key;sha256\r\ndog;;q1;{SHA}\r\n")

    (answer,) = answers(annotator)["q1"]

    assert (answer.value, answer.annotator) == ("dog", "sheet")


def test_skip_is_a_skip_unless_a_class_has_that_name(tmp_path: Path):
    plain, odd = (
        CsvAnnotator(tmp_path, classes, PICTURES, wording=SingleChoice())
        for classes in (("cat", "dog"), ("Skip", "dog"))
    )
    save(tmp_path / "batch-0001.csv", f"label,annotator,key,sha256\nSKIP,,q1,{SHA}\n(skip),,q2,{SHA}\n")

    assert answers(plain)["q1"][0].outcome is Outcome.SKIP
    assert answers(odd)["q1"][0].value == "SKIP"
    assert answers(odd)["q2"][0].outcome is Outcome.SKIP


def test_a_changed_cell_is_newer_and_the_others_keep_their_time(tmp_path: Path):
    annotator = pushed(tmp_path, "q1", "q2")
    sheet = tmp_path / "batch-0001.csv"
    save(sheet, f"label,annotator,key,sha256\ncat,,q1,{SHA}\ncat,,q2,{SHA}\n", at=1_900_000_000)
    before = answers(annotator)
    mark = list(annotator.pull(None))[-1].mark
    save(sheet, f"label,annotator,key,sha256\ndog,,q1,{SHA}\ncat,,q2,{SHA}\n", at=1_900_000_100)

    after = answers(annotator)

    assert after["q1"][0].updated_at > before["q1"][0].updated_at
    assert after["q2"] == before["q2"]
    assert answers(annotator, mark)["q1"][0].value == "dog"


def test_a_sheet_restored_from_a_backup_is_seen_as_changed(tmp_path: Path):
    annotator = pushed(tmp_path, "q1")
    sheet = tmp_path / "batch-0001.csv"
    save(sheet, f"label,annotator,key,sha256\ncat,,q1,{SHA}\n", at=1_900_000_000)
    mark = list(annotator.pull(None))[-1].mark
    save(sheet, f"label,annotator,key,sha256\ndog,,q1,{SHA}\n", at=1_800_000_000)

    assert answers(annotator, mark)["q1"][0].value == "dog"


def test_losing_the_memory_repeats_answers_and_loses_none(tmp_path: Path):
    annotator = pushed(tmp_path, "q1")
    save(tmp_path / "batch-0001.csv", f"label,annotator,key,sha256\ncat,,q1,{SHA}\n")
    before = answers(annotator)
    for text in ("{half", json.dumps({"q1#1": ["cat", "", "yesterday"]}), json.dumps({"q1#1": "cat"})):
        (tmp_path / ".seen.json").write_text(text)

        assert answers(annotator) == before


@pytest.mark.parametrize(
    "name", ["anna2024", "batch-0001 anna2024", "2024", "x-٢٠٢٤", "x²²²²", "batch-0001-0900", "a-9"]
)
def test_a_renamed_sheet_is_pushed_beside(tmp_path: Path, name: str):
    annotator = pushed(tmp_path, "q1")
    (tmp_path / "batch-0001.csv").rename(tmp_path / f"{name}.csv")

    list(annotator.push([make_task("q2")]))
    list(annotator.push([make_task("q3")]))

    assert {path.name for path in list_sheets(tmp_path)} == {f"{name}.csv", "batch-0002.csv", "batch-0003.csv"}
    assert {task.key for task in annotator.list_tasks()} == {"q1", "q2", "q3"}


def test_several_people_get_a_row_each(tmp_path: Path):
    annotator = pushed(tmp_path, "q1", annotations_per_image=2)
    sheet = read_sheet(tmp_path / "batch-0001.csv")
    assert [row["copy"] for row in sheet.rows] == ["1", "2"]
    save(tmp_path / "batch-0001.csv", f"label,annotator,key,copy,sha256\ncat,a,q1,2,{SHA}\ndog,b,q1,1,{SHA}\n")

    found = answers(annotator)["q1"]

    assert [(a.external_id, a.annotator, a.value) for a in found] == [("q1#1", "b", "dog"), ("q1#2", "a", "cat")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("label,annotator,file,key\ncat,,x,q1\n", "line 1: the column 'sha256' is missing"),
        (f"label,annotator,key,sha256\ncat,,q1,{SHA[:40]}\n", "line 2: the column 'sha256' holds no whole hash"),
        (f"label,annotator,key,sha256\ncat,,q0,{SHA}\ncat,an", "line 3: the line ends before the column 'key'"),
        (f"label,annotator,key,sha256\ncat,,,{SHA}\n", "line 2: the column 'key' is empty"),
        (f'label,annotator,key,sha256\n"cat,,q1,{SHA}\n', "line 2: unexpected end of data"),
        (f"label,annotator,key,sha256\ncat,,q1,{SHA}\ncat,,q1,{SHA}\n", "appears twice"),
    ],
)
def test_a_half_written_or_broken_sheet_is_named_with_line_and_column(tmp_path: Path, text: str, words: str):
    (tmp_path / "batch-0001.csv").write_text(text)

    with pytest.raises(LabelingError, match=words) as caught:
        answers(CsvAnnotator(tmp_path, ("cat", "dog"), PICTURES, wording=SingleChoice()))

    assert "batch-0001.csv" in caught.value.message


def test_files_that_spreadsheet_programs_hide_are_no_sheets(tmp_path: Path):
    for name in (".~lock.batch-0001.csv", "~$batch-0001.csv", "batch-0001.csv", "notes.txt"):
        (tmp_path / name).touch()

    assert [path.name for path in list_sheets(tmp_path)] == ["batch-0001.csv"]


def test_withdrawing_keeps_answered_rows_and_foreign_columns(tmp_path: Path):
    annotator = pushed(tmp_path, "q1")
    sheet = tmp_path / "batch-0001.csv"
    save(sheet, f"label;annotator;note;key;sha256\ncat;;nice;q1;{SHA}\n;;why;q2;{SHA}\n")

    assert annotator.withdraw(["q1", "q2", "never"]) == {"q2", "never"}

    text = sheet.read_text(encoding="utf-8-sig")
    assert text.splitlines() == ["label,annotator,note,key,sha256", f"cat,,nice,q1,{SHA}"]


def test_a_sheet_with_nothing_left_to_ask_goes(tmp_path: Path):
    annotator = pushed(tmp_path, "q1")

    annotator.withdraw(["q1"])

    assert list_sheets(tmp_path) == []
