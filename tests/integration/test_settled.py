"""Questions closed without a label do not count as answered, and `run` shows the warnings of `status`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from asked import SHEETS
from command_line import alloop
from factories import make_project
from sqlalchemy import text

from alloop.labeling.sheets import list_sheets, read_sheet, write_sheet
from alloop.project import Project


@pytest.fixture
def asked(tmp_path: Path) -> Project:
    """Round 0 asks about 8 images in one sheet."""
    project = make_project(tmp_path, 24, **SHEETS)
    assert alloop("run", "-C", project.folder).out == "Round 0: 8 of 8 images wait for annotators.\n"
    return project


def fill(project: Project, answer: Callable[[int], str]) -> None:
    for path in list_sheets(project.folder / "sheets"):
        sheet = read_sheet(path)
        rows = [{**row, "label": row["label"] or answer(number)} for number, row in enumerate(sheet.rows)]
        write_sheet(path, sheet.header, rows)


def value(project: Project, statement: str) -> object:
    with project.database.connect() as connection:
        return connection.execute(text(statement)).scalar_one()


def test_a_round_whose_answers_are_no_classes_stays_open_and_names_the_nearest_class(asked: Project):
    fill(asked, lambda number: "Cat")

    ran = alloop("run", "-C", asked.folder)

    assert ran.code == 0
    assert ran.out.splitlines() == [
        "Round 0: 0 of 8 images answered; 8 answered with an unknown class. Correct the answers, or run "
        "`alloop round close` to ask about these images again.",
        "8 answers say 'Cat', which is not a class: correct them, or add it to [project] classes. "
        "The nearest class is 'cat'.",
    ]
    assert alloop("run", "-C", asked.folder, "--fail-if-waiting").code == 3
    data = alloop("run", "-C", asked.folder, "--json").data
    assert (data["stage"], data["asked"], data["answered"], data["open"], data["labels"]) == ("waiting", 8, 0, 0, 0)
    assert data["attention"] == ran.out.splitlines()[1:]
    shown = alloop("status", "-C", asked.folder).out
    assert ran.out.splitlines()[1] in " ".join(shown.split())
    assert "0/8" in shown
    assert alloop("round", "list", "-C", asked.folder).out.startswith("0\tpushed\t0 of 8 answered")


def test_corrected_answers_close_it(asked: Project):
    fill(asked, lambda number: "Cat")
    alloop("run", "-C", asked.folder)
    sheet = read_sheet(asked.folder / "sheets" / "batch-0001.csv")
    write_sheet(sheet.path, sheet.header, [{**row, "label": "cat"} for row in sheet.rows])

    ran = alloop("run", "-C", asked.folder)

    assert ran.out.startswith("Round 0 is closed: 8 of 8 images answered. Run `alloop run` again")
    assert "No training label yet: dog" in ran.out


def test_a_round_that_closes_says_how_many_got_a_label_and_why_others_did_not(asked: Project):
    fill(asked, lambda number: {0: "Dog", 1: "skip"}.get(number, "dog"))

    ran = alloop("run", "-C", asked.folder)

    assert ran.out.startswith(
        "Round 0 is closed: 6 of 8 images answered; 1 skipped, 1 answered with an unknown class. Run `alloop run` again"
    )
    assert "1 image was skipped and is not asked again" in ran.out
    assert "1 answer says 'Dog'" in ran.out
    assert "6/8" in alloop("status", "-C", asked.folder).out


def test_a_round_whose_tasks_were_all_deleted_stays_open_until_it_is_closed_by_hand(asked: Project):
    sheet = read_sheet(asked.folder / "sheets" / "batch-0001.csv")
    write_sheet(sheet.path, sheet.header, [])

    ran = alloop("run", "-C", asked.folder)

    assert ran.code == 0
    assert ran.out.splitlines()[0] == (
        "Round 0: 0 of 8 images answered; 8 withdrawn, because their task was deleted, their file is missing or "
        "changed, or they are marked as junk. Correct the answers, or run `alloop round close` to ask about these "
        "images again."
    )
    assert "8 open tasks were deleted in the labeling project; their images are back in the pool." in ran.out
    assert alloop("round", "close", "-C", asked.folder).code == 0
    assert alloop("run", "-C", asked.folder).out.startswith("Round 1: 8 of 8 images wait")


def test_a_sheet_that_was_taken_along_is_waited_for(asked: Project):
    sheet = asked.folder / "sheets" / "batch-0001.csv"
    away = sheet.rename(asked.folder / "batch-0001.csv")

    ran = alloop("run", "-C", asked.folder)

    assert (ran.code, ran.out) == (0, "Round 0: 8 of 8 images wait for annotators.\n")
    assert "batch-0001.csv is not in" in ran.err
    assert value(asked, "SELECT count(*) FROM query WHERE status = 'open'") == 8
    away.rename(sheet)
    fill(asked, lambda number: "cat")
    assert alloop("run", "-C", asked.folder).out.startswith("Round 0 is closed: 8 of 8 images answered.")


def test_a_sheet_that_is_lost_is_asked_anew_and_a_folder_that_is_away_is_a_temporary_failure(asked: Project):
    (asked.folder / "sheets" / "batch-0001.csv").unlink()
    alloop("run", "-C", asked.folder)

    assert alloop("push", "--new-project", "-C", asked.folder, "--json").data["tasks"] == 8
    assert len(read_sheet(asked.folder / "sheets" / "batch-0002.csv").rows) == 8
    (asked.folder / "sheets").rename(asked.folder / "elsewhere")

    ran = alloop("run", "-C", asked.folder)

    assert ran.code == 75
    assert f"There are no sheets in {asked.folder / 'sheets'}" in ran.err
    assert value(asked, "SELECT count(*) FROM query WHERE status = 'open'") == 8


def test_a_file_that_is_missing_is_said_by_run_too(asked: Project):
    fill(asked, lambda number: "cat")
    gone = Path(str(value(asked, "SELECT max(path) FROM image_location")))
    gone.unlink()
    alloop("pool", "check", "-C", asked.folder)

    ran = alloop("run", "-C", asked.folder)

    assert f"1 file is missing, for example {gone}" in ran.out
