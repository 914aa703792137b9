"""Three ids of the last push: what their agreement says, and that no kill between two of them looks like a copy."""

import json
from pathlib import Path

import pytest
from factories import at_bench, make_project

from alloop.errors import LabelingError
from alloop.loop.asking.last_push import FILE_NAME, begin_push, check_last_push, is_overtaken
from alloop.project import Project
from alloop.store.session import reading, transaction
from alloop.store.workspace import find_sync, set_last_push, set_next_push, set_project


class Remembering:
    """A back end that remembers a push, or dies when it should."""

    source = "csv"

    def __init__(self, push_id: str | None = None) -> None:
        self.push_id = push_id
        self.dies = False

    def last_push(self) -> str | None:
        return self.push_id

    def set_last_push(self, push_id: str) -> None:
        if self.dies:
            raise KeyboardInterrupt
        self.push_id = push_id


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = make_project(tmp_path, 2, labeling={"backend": "csv"}, add=False)
    with transaction(project.database) as session:
        set_project(session, "csv", "sheets")
    return project


def remember(project: Project, *, database: str | None = None, folder: str | None = None) -> None:
    if database is not None:
        with transaction(project.database) as session:
            set_last_push(session, "csv", database)
    if folder is not None:
        (project.folder / FILE_NAME).write_text(json.dumps({"csv": folder}))


def remembered(project: Project) -> tuple[str | None, str | None, str | None]:
    """In the database: last and next; in the folder."""
    with reading(project.database) as session:
        sync = find_sync(session, "csv")
    assert sync is not None
    path = project.folder / FILE_NAME
    return sync.last_push, sync.next_push, json.loads(path.read_text())["csv"] if path.exists() else None


def test_a_push_gives_the_same_new_id_to_all_three(project: Project):
    annotator = Remembering()
    at_bench(project, begin_push, annotator)
    first = annotator.push_id
    at_bench(project, begin_push, annotator)

    assert annotator.push_id != first
    assert remembered(project) == (annotator.push_id, None, annotator.push_id)


@pytest.mark.parametrize("arrived", [False, True])
def test_a_push_killed_before_or_after_the_server_took_its_id_is_still_ours(project: Project, arrived: bool):
    annotator = Remembering()
    at_bench(project, begin_push, annotator)
    with transaction(project.database) as session:
        set_next_push(session, "csv", "next")
    if arrived:
        annotator.push_id = "next"

    at_bench(project, check_last_push, annotator)

    assert remembered(project) == (annotator.push_id, None, annotator.push_id)


def test_a_kill_while_the_server_takes_the_id_leaves_an_id_that_is_known(project: Project):
    annotator = Remembering()
    at_bench(project, begin_push, annotator)
    annotator.dies = True
    with pytest.raises(KeyboardInterrupt):
        at_bench(project, begin_push, annotator)

    at_bench(project, check_last_push, annotator)


@pytest.mark.parametrize("database", [None, "old"])
def test_a_database_older_than_its_folder_goes_on_with_a_warning(
    project: Project, database: str | None, caplog: pytest.LogCaptureFixture
):
    remember(project, database=database, folder="new")

    at_bench(project, check_last_push, Remembering("new"))

    assert remembered(project) == ("new", None, "new")


@pytest.mark.parametrize(
    ("database", "folder"), [("old", "old"), ("old", None), (None, None), ("older", "old")], ids=str
)
def test_a_push_that_neither_database_nor_folder_knows_came_from_a_copy(
    project: Project, database: str | None, folder: str | None
):
    remember(project, database=database, folder=folder)
    annotator = Remembering("new")

    assert is_overtaken(project, annotator)
    with pytest.raises(LabelingError, match="another copy of the workspace") as caught:
        at_bench(project, check_last_push, annotator)
    with pytest.raises(LabelingError):
        at_bench(project, begin_push, annotator)

    assert "--take-over" in caught.value.hint
    assert "--new-project" in caught.value.hint
    assert annotator.push_id == "new"
    assert remembered(project) == (database, None, folder)
    at_bench(project, check_last_push, annotator, take_over=True)
    assert remembered(project) == ("new", None, "new")


@pytest.mark.parametrize(("database", "folder"), [("id", None), ("id", "old"), ("id", "id")])
def test_a_folder_that_lags_behind_is_brought_up_to_date(project: Project, database: str, folder: str | None):
    remember(project, database=database, folder=folder)

    at_bench(project, check_last_push, Remembering("id"))

    assert remembered(project) == ("id", None, "id")


def test_a_project_that_forgot_or_never_had_a_push_is_no_reason_to_stop(project: Project):
    remember(project, database="id", folder="id")

    at_bench(project, check_last_push, Remembering(None))

    assert remembered(project) == ("id", None, "id")


def test_a_damaged_file_in_the_folder_counts_as_none(project: Project):
    (project.folder / FILE_NAME).write_text("[")
    annotator = Remembering()

    at_bench(project, begin_push, annotator)

    assert remembered(project) == (annotator.push_id, None, annotator.push_id)
