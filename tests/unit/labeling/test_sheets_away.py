"""A sheet that somebody takes along is waited for; only a row that is missing from its sheet is a deleted task."""

import logging
from pathlib import Path

import pytest
from factories import fake_sha256

from alloop.errors import ServerUnavailable
from alloop.labeling.csv_file import CsvAnnotator
from alloop.labeling.sheets import read_sheet, write_sheet
from alloop.labeling.single_choice import SingleChoice
from alloop.pool.picture import PICTURES
from alloop.records import ImageRef, OutgoingTask


def make_people(folder: Path, copies: int = 1) -> CsvAnnotator:
    return CsvAnnotator(folder, ("cat", "dog"), PICTURES, wording=SingleChoice(), annotations_per_image=copies)


def make_tasks(*numbers: int) -> list[OutgoingTask]:
    return [OutgoingTask(f"k{number}", ImageRef(number, fake_sha256(number), f"/p/{number}.png")) for number in numbers]


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """Two sheets, of tasks k1 to k3 and k4 to k5."""
    people = make_people(tmp_path / "sheets")
    people.open_project(None)
    list(people.push(make_tasks(1, 2, 3)))
    list(people.push(make_tasks(4, 5)))
    return tmp_path / "sheets"


def fill(path: Path, label: str, *, rows: slice = slice(None)) -> None:
    sheet = read_sheet(path)
    filled = [{**row, "label": label} if row in sheet.rows[rows] else row for row in sheet.rows]
    write_sheet(path, sheet.header, filled)


def keys(folder: Path) -> list[str]:
    people = make_people(folder)
    people.open_project("sheets")
    return sorted(task.key for task in people.list_tasks())


def answers(folder: Path, copies: int = 1) -> dict[str, list[str | None]]:
    people = make_people(folder, copies)
    people.open_project("sheets")
    return {
        answered.task.key: [answer.value for answer in answered.answers]
        for page in people.pull(None)
        for answered in page.tasks
    }


def test_a_sheet_that_is_away_deletes_nothing_and_is_named(sheets: Path, caplog: pytest.LogCaptureFixture):
    fill(sheets / "batch-0001.csv", "cat", rows=slice(1))
    assert answers(sheets) == {"k1": ["cat"], "k2": [], "k3": [], "k4": [], "k5": []}
    (sheets / "batch-0001.csv").rename(sheets.parent / "batch-0001.csv")

    assert keys(sheets) == ["k1", "k2", "k3", "k4", "k5"]
    with caplog.at_level(logging.WARNING, "alloop"):
        logging.getLogger("alloop").addHandler(caplog.handler)
        assert answers(sheets) == {"k1": ["cat"], "k2": [], "k3": [], "k4": [], "k5": []}
        logging.getLogger("alloop").removeHandler(caplog.handler)
    assert f"batch-0001.csv is not in {sheets}. Its 2 open questions stay open until it is back." in caplog.text

    fill(sheets.parent / "batch-0001.csv", "dog")
    (sheets.parent / "batch-0001.csv").rename(sheets / "filled in.csv")
    assert answers(sheets) == {"k1": ["dog"], "k2": ["dog"], "k3": ["dog"], "k4": [], "k5": []}


def test_a_sheet_may_be_away_before_it_was_ever_read(sheets: Path):
    (sheets / "batch-0002.csv").unlink()

    assert keys(sheets) == ["k1", "k2", "k3", "k4", "k5"]


def test_a_row_that_is_missing_from_its_sheet_is_a_deleted_task(sheets: Path):
    sheet = read_sheet(sheets / "batch-0001.csv")
    write_sheet(sheets / "renamed.csv", sheet.header, sheet.rows[1:])
    sheet.path.unlink()
    other = read_sheet(sheets / "batch-0002.csv")
    write_sheet(other.path, other.header, [])

    assert keys(sheets) == ["k2", "k3"]


def test_the_half_of_a_sheet_that_is_away_keeps_its_answers(tmp_path: Path):
    folder = tmp_path / "sheets"
    people = make_people(folder, copies=2)
    people.open_project(None)
    list(people.push(make_tasks(1)))
    sheet = read_sheet(folder / "batch-0001.csv")
    for name, row in (("ann", sheet.rows[0]), ("bob", sheet.rows[1])):
        write_sheet(folder / f"{name}.csv", sheet.header, [{**row, "label": "cat", "annotator": name}])
    sheet.path.unlink()
    assert answers(folder, 2) == {"k1": ["cat", "cat"]}

    (folder / "bob.csv").unlink()

    assert answers(folder, 2) == {"k1": ["cat", "cat"]}


def test_a_new_sheet_does_not_take_the_name_of_one_that_is_away(sheets: Path):
    (sheets / "batch-0002.csv").unlink()

    list(make_people(sheets).push(make_tasks(6)))

    assert sorted(path.name for path in sheets.glob("*.csv")) == ["batch-0001.csv", "batch-0003.csv"]
    assert keys(sheets) == ["k1", "k2", "k3", "k4", "k5", "k6"]


def test_a_sheet_that_a_new_project_gave_up_replaces_none_when_it_comes_back(sheets: Path):
    taken = (sheets / "batch-0002.csv").read_bytes()
    (sheets / "batch-0002.csv").unlink()
    people = make_people(sheets)
    people.open_project(None)

    list(people.push(make_tasks(6)))

    assert sorted(path.name for path in sheets.glob("*.csv")) == ["batch-0001.csv", "batch-0003.csv"]
    (sheets / "batch-0002.csv").write_bytes(taken)
    assert keys(sheets) == ["k1", "k2", "k3", "k4", "k5", "k6"]


def test_a_number_is_not_used_again_after_its_sheet_was_taken_back_or_renamed(sheets: Path):
    people = make_people(sheets)
    people.withdraw(["k4", "k5"])
    (sheets / "batch-0001.csv").rename(sheets / "anna.csv")
    people.list_tasks()

    list(people.push(make_tasks(6)))

    assert sorted(path.name for path in sheets.glob("*.csv")) == ["anna.csv", "batch-0003.csv"]


def test_losing_the_last_number_stops_no_push(sheets: Path):
    for text in ("{half", "[3]", '"x"', "null"):
        (sheets / ".last-sheet.json").write_text(text)
        (sheets / ".seen.json").unlink()

        list(make_people(sheets).push(make_tasks(len(list(sheets.glob("*.csv"))) + 4)))

    assert [path.name for path in sorted(sheets.glob("*.csv"))] == [f"batch-000{n}.csv" for n in range(1, 7)]


def test_what_was_taken_back_is_not_waited_for_and_what_is_away_is_not_taken_back(sheets: Path):
    (sheets / "batch-0002.csv").unlink()

    assert make_people(sheets).withdraw(["k1", "k2", "k3", "k4"]) == {"k1", "k2", "k3"}

    assert keys(sheets) == ["k4", "k5"]


def test_a_new_project_gives_up_the_sheets_that_are_away(sheets: Path):
    (sheets / "batch-0002.csv").unlink()

    make_people(sheets).open_project(None)

    assert keys(sheets) == ["k1", "k2", "k3"]


def test_a_folder_of_sheets_that_is_not_there_is_waited_for(sheets: Path):
    sheets.rename(sheets.parent / "elsewhere")

    with pytest.raises(ServerUnavailable, match="There are no sheets in"):
        make_people(sheets).open_project("sheets")

    make_people(sheets).open_project(None)
    assert make_people(sheets).open_project("sheets") == "sheets"
