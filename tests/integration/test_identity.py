"""A restored database, a copied workspace, images that moved or changed: every answer stays with its own image."""

import contextlib
import csv
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from command_line import alloop
from factories import make_project, write_picture
from sqlalchemy import text

from alloop.errors import LabelError
from alloop.files import sha256_of
from alloop.labeling.simulated import read_truth
from alloop.loop.intake.ingest import image_folders
from alloop.project import Project
from alloop.records import ImageRef


def make_sheets(tmp_path: Path, n: int = 6) -> Project:
    """A workspace whose sheets lie beside it; the first run has asked about all images."""
    options = {"labeling": {"backend": "csv"}, "labeling__csv": {"folder": str(tmp_path / "sheets")}}
    project = make_project(tmp_path, n, loop={"batch_size": 8}, **options)
    assert alloop("run", "-C", project.folder).code == 0
    return project


def fill(folder: Path, answer: str) -> int:
    """Answer every question that has no answer yet; returns how many."""
    n = 0
    for path in sorted((folder.parent / "sheets").glob("*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader(file)
        for row in rows:
            if not row[0]:
                row[0], n = answer, n + 1
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return n


def add_picture(project: Project, number: int) -> Path:
    path = write_picture(project.folder / "photos" / f"{number:04d}.png", label="cat", number=number)
    assert alloop("pool", "add", path, "-C", project.folder).code == 0
    return path


def restore(project: Project, backup: Path) -> None:
    """Put a backup in place of the database, as one does by hand."""
    project.close()
    for path in project.folder.glob("alloop.db*"):
        path.unlink()
    shutil.copy(backup, project.folder / "alloop.db")


def labels(project: Project) -> dict[str, str]:
    """Content hash → class."""
    with project.database.connect() as connection:
        rows = connection.execute(text("SELECT sha256, class_name FROM label JOIN image ON image.id = image_id"))
        return {sha256: class_name for sha256, class_name in rows}


@pytest.fixture
def restored(tmp_path: Path) -> tuple[Project, Path]:
    """A database from before a round whose question was answered `cat`; then another new picture took its number."""
    project = make_sheets(tmp_path)
    folder = project.folder
    assert fill(folder, "dog") == 6
    assert alloop("run", "-C", folder).code == 0
    assert alloop("db", "backup", tmp_path / "saved.db", "-C", folder).code == 0
    lost = add_picture(project, 100)
    assert alloop("run", "-C", folder).code == 0
    assert fill(folder, "cat") == 1
    restore(project, tmp_path / "saved.db")
    lost.rename(tmp_path / "lost.png")
    return project, add_picture(project, 202)


def test_answers_given_since_a_backup_go_to_no_other_image(restored: tuple[Project, Path]):
    project, new = restored

    ran = alloop("run", "-C", project.folder)

    assert ran.code == 0
    assert "1 of 1 image waits for annotators" in ran.out
    assert sha256_of(new) not in labels(project)
    assert fill(project.folder, "dog") == 1  # the new picture is asked about in a row of its own
    assert alloop("run", "-C", project.folder).code == 0
    assert labels(project)[sha256_of(new)] == "dog"
    assert set(labels(project).values()) == {"dog"}


def test_a_restored_database_says_so_once_and_reports_the_tasks_it_does_not_know(restored: tuple[Project, Path]):
    project, _ = restored

    ran = alloop("run", "-C", project.folder)
    pulled = alloop("pull", "-C", project.folder, "--json")

    assert "The database is older than its tasks" in ran.err
    assert "The database is older than its tasks" not in pulled.err
    assert (pulled.data["orphaned"], pulled.data["foreign"]) == (1, 0)
    assert "1 task was made by this workspace, but its database does not know it" in pulled.err
    assert alloop("status", "-C", project.folder, "--json").data["orphaned"] == 1
    assert "1 task was made by this workspace" in alloop("status", "-C", project.folder).out


def test_answers_that_a_restored_database_does_not_know_are_adopted_by_content(
    restored: tuple[Project, Path], tmp_path: Path
):
    project, new = restored
    lost = tmp_path / "lost.png"

    left_out = alloop("labels", "adopt", "-C", project.folder, "--json").data
    assert alloop("pool", "add", lost, "-C", project.folder).code == 0
    adopted = alloop("labels", "adopt", "-C", project.folder, "--json").data
    again = alloop("labels", "adopt", "-C", project.folder, "--json").data

    assert left_out == {"recorded": 0, "left_out": 1}
    assert adopted == {"recorded": 1, "left_out": 0}
    assert again == {"recorded": 0, "left_out": 0}
    assert labels(project)[sha256_of(lost)] == "cat"
    assert sha256_of(new) not in labels(project)
    assert alloop("pull", "-C", project.folder, "--json").data["orphaned"] == 0


@pytest.fixture
def copied(tmp_path: Path) -> tuple[Path, Path]:
    """A workspace and its copy, which write to the same folder of sheets; the first has pushed since."""
    project = make_sheets(tmp_path)
    assert fill(project.folder, "dog") == 6
    assert alloop("run", "-C", project.folder).code == 0
    project.close()
    copy = tmp_path / "copy"
    shutil.copytree(project.folder, copy)
    add_picture(project, 100)
    assert alloop("run", "-C", project.folder).code == 0
    return project.folder, copy


def test_a_second_copy_of_a_workspace_takes_nothing_and_names_both_ways_out(copied: tuple[Path, Path]):
    first, copy = copied
    refused = [alloop(*argv, "-C", copy) for argv in (["pull"], ["labels", "adopt"])]

    for ended in refused:
        assert ended.code == 1
        assert "another copy of the workspace" in ended.err
        assert "alloop push --take-over" in ended.err
        assert "alloop push --new-project" in ended.err
    assert alloop("pull", "-C", first).code == 0
    with contextlib.closing(sqlite3.connect(copy / "alloop.db")) as connection:
        assert connection.execute("SELECT count(*) FROM annotation").fetchone() == (6,)


def test_a_copy_may_take_over_and_then_the_first_one_stops(copied: tuple[Path, Path]):
    first, copy = copied

    assert alloop("push", "--take-over", "-C", copy).code == 0
    assert alloop("pull", "-C", copy).code == 0
    assert alloop("pull", "-C", first).code == 0  # nothing was pushed by the copy yet
    new = write_picture(copy / "photos" / "0200.png", label="cat", number=200)
    assert alloop("pool", "add", new, "-C", copy).code == 0
    assert alloop("run", "-C", copy).code == 0

    assert alloop("pull", "-C", first).code == 1


def test_a_copy_may_have_a_project_of_its_own_beside_the_first(copied: tuple[Path, Path]):
    first, copy = copied

    assert alloop("push", "--new-project", "-C", copy).code == 0
    new = write_picture(copy / "photos" / "0200.png", label="cat", number=200)
    assert alloop("pool", "add", new, "-C", copy).code == 0
    assert alloop("run", "-C", copy).code == 0

    found = {folder: alloop("pull", "-C", folder, "--json") for folder in copied}
    assert [ended.code for ended in found.values()] == [0, 0]
    # Each sees the tasks of the other as somebody else's: neither answers nor orphans.
    assert [(ended.data["new"], ended.data["orphaned"]) for ended in found.values()] == [(0, 0), (0, 0)]
    assert found[first].data["foreign"] == 1


def replace(path: Path, number: int) -> None:
    """Another picture of the same size in bytes, with the times of the old one: only its content tells."""
    before, size = path.stat(), path.stat().st_size
    write_picture(path, label="dog", number=number)
    data = path.read_bytes()
    path.write_bytes((data + b"\0" * size)[: max(size, len(data))])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_answer_about_a_file_that_was_replaced_is_kept_and_does_not_count(tmp_path: Path):
    project = make_sheets(tmp_path)
    path = project.folder / "photos" / "0003.png"
    before = sha256_of(path)
    replace(path, 999)
    assert fill(project.folder, "dog") == 6

    pulled = alloop("pull", "-C", project.folder, "--json")

    assert (pulled.data["new"], pulled.data["outdated"]) == (5, 1)
    assert "1 answer does not count" in pulled.err
    found = labels(project)
    assert len(found) == 5
    assert before not in found
    assert sha256_of(path) not in found
    with project.database.connect() as connection:
        kept = connection.execute(text("SELECT outcome, value FROM annotation WHERE outcome <> 'label'")).all()
        status = connection.execute(
            text("SELECT status FROM query JOIN image ON image.id = image_id WHERE sha256 = :sha"), {"sha": before}
        ).all()
        new = connection.execute(text("SELECT count(*) FROM image WHERE sha256 = :sha"), {"sha": sha256_of(path)}).all()
    assert [tuple(row) for row in kept] == [("outdated", "dog")]
    assert [tuple(row) for row in status] == [("withdrawn",)]
    assert [tuple(row) for row in new] == [(1,)]
    again = alloop("pull", "-C", project.folder, "--json").data
    assert (again["new"], again["edited"], again["outdated"]) == (0, 0, 0)


def test_an_answer_given_before_its_file_was_replaced_stays(tmp_path: Path):
    project = make_sheets(tmp_path)
    path = project.folder / "photos" / "0003.png"
    before = sha256_of(path)
    assert fill(project.folder, "dog") == 6
    assert alloop("pull", "-C", project.folder).code == 0
    replace(path, 999)

    assert alloop("pull", "-C", project.folder, "--json").data["outdated"] == 0

    assert labels(project)[before] == "dog"


def test_open_questions_follow_their_images_to_another_folder(tmp_path: Path):
    project = make_sheets(tmp_path)
    folder, new = project.folder, tmp_path / "elsewhere"
    (folder / "photos").rename(new)

    lost = alloop("run", "-C", folder)
    assert alloop("pool", "add", new, "-C", folder).code == 0
    found = alloop("run", "-C", folder)

    assert lost.code == found.code == 0
    assert "6 images being asked about are not where they were, for example" in lost.err
    assert "alloop pool add" in lost.err
    assert "not where they were" not in found.err
    assert "6 open tasks got the new addresses of their images" in found.err
    (sheet,) = (tmp_path / "sheets").glob("*.csv")
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {sha256_of(Path(row["file"])) for row in rows} == {row["sha256"] for row in rows}
    assert fill(folder, "cat") == 6
    assert alloop("run", "-C", folder).code == 0
    assert len(labels(project)) == 6


def test_folders_that_were_moved_away_are_not_served_any_more(tmp_path: Path):
    project = make_project(tmp_path, 2)
    (project.folder / "photos").rename(tmp_path / "elsewhere")
    assert alloop("pool", "add", tmp_path / "elsewhere", "-C", project.folder).code == 0

    assert image_folders(project) == [tmp_path / "elsewhere"]


def test_a_table_that_names_a_replaced_file_is_refused_until_the_file_is_added_again(tmp_path: Path):
    project = make_project(tmp_path, 2)
    path = project.folder / "photos" / "0001.png"
    table = project.folder / "labels.csv"
    replace(path, 999)
    table.write_text("file,label\nphotos/0001.png,cat\n")

    refused = alloop("labels", "import", table, "-C", project.folder)
    before = labels(project)
    assert alloop("pool", "add", path, "-C", project.folder).code == 0
    imported = alloop("labels", "import", table, "-C", project.folder)

    assert refused.code == 1
    assert "was replaced since it was added" in refused.err
    assert before == {}
    assert imported.code == 0
    assert labels(project) == {sha256_of(path): "cat"}


def test_a_table_that_names_a_file_outside_the_pool_does_not_mean_the_one_of_the_same_name(tmp_path: Path):
    project = make_project(tmp_path, 2)
    other = write_picture(tmp_path / "other" / "0001.png", label="cat", number=77)
    (tmp_path / "other" / "labels.csv").write_text("file,label\n0001.png,cat\n")

    refused = alloop("labels", "import", tmp_path / "other" / "labels.csv", "-C", project.folder)
    other.unlink()
    by_name = alloop("labels", "import", tmp_path / "other" / "labels.csv", "-C", project.folder)

    assert refused.code == 1
    assert "0001.png is not in the pool" in refused.err
    assert by_name.code == 0  # a bare name alone means the only image that is called so
    assert labels(project) == {sha256_of(project.folder / "photos" / "0001.png"): "cat"}


def test_a_replaced_file_is_not_exported_under_the_label_of_the_image_it_was(tmp_path: Path):
    project = make_project(tmp_path, 2)
    path = project.folder / "photos" / "0001.png"
    (project.folder / "labels.csv").write_text("file,label\nphotos/0001.png,cat\n")
    assert alloop("labels", "import", project.folder / "labels.csv", "-C", project.folder).code == 0
    replace(path, 999)

    refused = alloop("labels", "export", tmp_path / "out", "-C", project.folder)

    assert refused.code == 1
    assert f"1 labeled images were replaced by other files, for example {path}" in refused.err
    assert not (tmp_path / "out").exists()


def test_the_oracle_does_not_take_a_row_about_another_file_of_the_same_name(tmp_path: Path):
    first = write_picture(tmp_path / "a" / "1.png", label="cat", number=1)
    second = write_picture(tmp_path / "b" / "1.png", label="dog", number=2)
    (tmp_path / "truth.csv").write_text("file,label\na/1.png,cat\n")
    truth = read_truth(tmp_path / "truth.csv")

    with pytest.raises(LabelError, match="has no label for"):
        truth.label(ImageRef(2, sha256_of(second), str(second)))

    moved = ImageRef(1, sha256_of(first), str(first.rename(tmp_path / "1.png")))
    assert truth.label(moved) == "cat"


@pytest.mark.parametrize("command", [["pool", "add", "photos"], ["pool", "check"]])
def test_a_file_that_was_replaced_with_size_and_time_kept_is_read_again(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
):
    project = make_project(tmp_path, 2)
    path = project.folder / "photos" / "0001.png"
    replace(path, 999)
    monkeypatch.chdir(project.folder)

    assert alloop(*command, "-C", project.folder).code == 0

    with project.database.connect() as connection:
        query = text("SELECT status FROM image_location JOIN image ON image.id = image_id WHERE sha256 = :sha")
        assert [tuple(row) for row in connection.execute(query, {"sha": sha256_of(path)})] == [("ok",)]


def test_a_file_replaced_before_its_push_is_not_asked_about(tmp_path: Path):
    project = make_project(tmp_path, 6, labeling={"backend": "csv"}, loop={"batch_size": 8})
    for step in ("train", "score", "select"):
        assert alloop(step, "-C", project.folder).code == 0
    path = project.folder / "photos" / "0003.png"
    replace(path, 999)

    pushed = alloop("push", "-C", project.folder, "--json")

    assert pushed.data["tasks"] == 5
    assert alloop("pool", "check", "-C", project.folder).code == 0
    with project.database.connect() as connection:
        query = text("SELECT sha256 FROM image_location JOIN image ON image.id = image_id WHERE path = :path")
        assert [tuple(row) for row in connection.execute(query, {"path": str(path)})] == [(sha256_of(path),)]


def test_an_open_question_whose_file_is_another_image_now_is_reported(tmp_path: Path):
    project = make_sheets(tmp_path)
    path = project.folder / "photos" / "0003.png"
    before = sha256_of(path)
    replace(path, 999)
    assert alloop("pool", "add", "-C", project.folder, path).code == 0

    ran = alloop("run", "-C", project.folder)

    assert f"1 images being asked about are not where they were, for example image {before[:12]}" in ran.err


def test_a_file_that_is_away_is_not_missed_while_its_image_is_elsewhere(tmp_path: Path):
    project = make_sheets(tmp_path, 12)
    photos, elsewhere = project.folder / "photos", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number in range(3):
        shutil.move(photos / f"{number:04d}.png", elsewhere)
    assert alloop("pool", "add", elsewhere, "-C", project.folder).code == 0
    (photos / "0005.png").unlink()
    assert alloop("pool", "check", "-C", project.folder).code == 0

    shown = alloop("status", "-C", project.folder)

    assert f"1 file is missing, for example {photos / '0005.png'}" in " ".join(shown.out.split())


def test_a_round_of_which_nothing_could_be_sent_is_not_waited_for(tmp_path: Path):
    project = make_project(tmp_path, 24, labeling={"backend": "csv"}, loop={"batch_size": 4})
    at = ("-C", project.folder)
    assert [alloop(step, *at).code for step in ("train", "score", "select")] == [0, 0, 0]
    for number in range(24):
        replace(project.folder / "photos" / f"{number:04d}.png", 100 + number)

    closed = alloop("run", *at, "--fail-if-waiting")
    onward = alloop("run", *at, "--fail-if-waiting")

    assert (closed.code, closed.out.startswith("Round 0 is closed: 0 of")) == (0, True)
    assert onward.code == 3
    assert onward.out.startswith("Round 1:")
    assert "images wait for annotators" in onward.out


def test_the_sheets_of_another_workspace_delete_no_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = make_sheets(tmp_path)
    at = ("-C", project.folder)
    (tmp_path / "second").mkdir()
    make_sheets(tmp_path / "second")

    with monkeypatch.context() as patch:
        patch.setenv("ALLOOP__LABELING__CSV__FOLDER", str(tmp_path / "second" / "sheets"))
        ran = alloop("run", *at)

    assert ran.code == 1
    assert "None of this workspace's tasks is in its csv project: 6 images are being asked about" in ran.err
    assert "--new-project" in ran.err
    assert fill(project.folder, "cat") == 6
    assert alloop("run", *at).out.startswith("Round 0 is closed: 6 of 6 images answered")
