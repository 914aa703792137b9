"""Faults outside alloop: each is refused with a message and a way out, and the workspace stays unchanged."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from alloop_process import Forks
from command_line import Outcome, alloop
from factories import CLASSES, at_bench, make_project, write_picture, write_pool, write_settings
from somebody_else import as_somebody_else, closed_to_others
from sqlalchemy import Engine, event, text

from alloop.loop.intake.labels import import_labels
from alloop.loop.writer import actor, writer
from alloop.project import Project
from alloop.store.migrate import head_revision
from alloop.store.session import connect


def value(project: Project, statement: str) -> object:
    with project.database.connect() as connection:
        return connection.execute(text(statement)).scalar_one()


def step(project: Project, *arguments: str) -> Outcome:
    return alloop("run", "-C", project.folder, *arguments)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def at_round_one(tmp_path: Path, *commands: str) -> Project:
    """Round 0 is closed, and these steps of round 1 are done."""
    project = make_project(tmp_path, n=30)
    for name in ("run", *commands):
        assert alloop(name, "-C", project.folder).code == 0
    return project


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("position", [20, -20])
def test_a_damaged_model_is_refused_and_trained_again(tmp_path: Path, name: str, position: int):
    project = at_round_one(tmp_path, "train")
    flip(project.paths.model(1) / name, position)

    refused = step(project)

    assert refused.code == 1
    assert "is damaged: its checksum does not match" in refused.err
    assert "`alloop train`" in refused.err
    assert value(project, "SELECT state FROM round WHERE number = 1") == "trained"
    assert alloop("train", "-C", project.folder).code == 0
    assert step(project).code == 0


def test_a_model_that_is_gone_is_said_to_be(tmp_path: Path):
    project = at_round_one(tmp_path, "train")
    (project.paths.model(1) / "model.json").unlink()

    refused = alloop("score", "-C", project.folder)

    assert refused.code == 1
    assert "cannot be read" in refused.err
    assert "`alloop train`" in refused.err


@pytest.mark.parametrize("damage", [lambda path: flip(path, 200), Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_scores_are_refused_and_made_again(tmp_path: Path, damage: Callable[[Path], object]):
    project = at_round_one(tmp_path, "train", "score")
    damage(project.paths.scores(1))

    refused = step(project)

    assert refused.code == 1
    assert "missing or damaged" in refused.err
    assert "`alloop score`" in refused.err
    assert value(project, "SELECT state FROM round WHERE number = 1") == "scored"
    assert alloop("score", "-C", project.folder).code == 0
    assert step(project).code == 0


def test_a_damaged_cache_is_rebuilt_and_changes_nothing(tmp_path: Path):
    whole, damaged = at_round_one(tmp_path / "a", "train"), at_round_one(tmp_path / "b", "train")
    shards = list((damaged.folder / "cache").rglob("*.npy"))
    assert shards
    for shard in shards:
        flip(shard, -7)

    for project in (whole, damaged):
        for name in ("train", "score"):
            assert alloop(name, "-C", project.folder).code == 0

    models = [value(project, "SELECT sha256 FROM model_version") for project in (whole, damaged)]
    assert models[0] == models[1]


def test_a_deleted_cache_is_rebuilt(tmp_path: Path):
    project = at_round_one(tmp_path, "train")
    shutil.rmtree(project.folder / "cache")

    assert step(project).code == 0


def full_disk(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Every file below a folder whose name has this part finds the disk full when it is flushed."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if part in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to know which file is flushed")
@pytest.mark.parametrize(
    ("done", "part", "state"),
    [
        ((), "/cache/", "created"),
        ((), "model.safetensors", "created"),
        ((), "model.json", "created"),
        (("train",), "scores.parquet", "trained"),
    ],
)
def test_a_full_disk_leaves_the_round_where_it_was_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: tuple[str, ...], part: str, state: str
):
    project = at_round_one(tmp_path, *done)
    if part == "/cache/":
        part = str(project.folder / "cache")
    files = sorted(path for path in project.folder.rglob("*") if path.is_file() and ".db" not in path.name)
    with monkeypatch.context() as patched:
        full_disk(patched, part)
        failed = step(project)

    assert failed.code == 1
    assert "The disk is full: " in failed.err
    assert "Free some space and run the command again." in failed.err
    assert value(project, "SELECT state FROM round WHERE number = 1") == state
    left = sorted(path for path in project.folder.rglob("*") if path.is_file() and ".db" not in path.name)
    assert [path for path in left if path not in files and "/cache/" not in str(path)] == []
    assert [path for path in left if ".tmp" in path.name] == []
    assert value(project, "SELECT count(*) FROM lease") == 0
    assert step(project).code == 0


def test_a_full_disk_under_the_database_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """SQLite itself reports the disk full once its file may not grow."""
    project = at_round_one(tmp_path)
    project.database.dispose()

    def small(url: str) -> Engine:
        database = connect(url)

        @event.listens_for(database, "connect")
        def _limit(connection, _) -> None:
            connection.execute("PRAGMA max_page_count = 1")  # no page more than there are

        return database

    monkeypatch.setattr("alloop.project.connect", small)
    write_pool(project.folder / "more", 200, first=1000)
    failed = alloop("pool", "add", project.folder / "more", "-C", project.folder)
    monkeypatch.undo()

    assert failed.code == 1
    assert "The disk is full" in failed.err
    assert value(project, "SELECT count(*) FROM image") == 30
    assert alloop("pool", "add", project.folder / "more", "-C", project.folder, "--json").data["new"] == 200


def test_a_read_only_workspace_is_said_to_be(forks: Forks, tmp_path: Path):
    project = at_round_one(tmp_path)
    project.close()
    before = sorted(project.folder.rglob("*"))
    with closed_to_others(project.folder):
        (found,) = as_somebody_else(forks, project.folder, ["run"])

    assert found.code == 1, found.err
    assert "Traceback" not in found.err
    assert "alloop.db" in found.err
    assert "writ" in found.err
    assert sorted(project.folder.rglob("*")) == before


def test_an_init_that_cannot_write_leaves_nothing(tmp_path: Path):
    (tmp_path / "file").touch()

    refused = alloop("init", tmp_path / "file" / "pets", "--classes", "cat,dog")

    assert refused.code == 1
    assert "could not be written" in refused.err


def test_init_refuses_what_would_not_work_and_writes_nothing(tmp_path: Path):
    for classes, message in (("cat", "at least two classes"), ("cat,cat", "named twice"), ("a/b,c", "slashes")):
        refused = alloop("init", tmp_path / "pets", "--classes", classes)
        assert refused.code == 2
        assert message in refused.err
        assert not (tmp_path / "pets").exists()


def test_a_class_that_label_studio_reads_as_a_field_is_refused_by_init_and_by_run(tmp_path: Path):
    refused = alloop("init", "--classes", "cat,$5", tmp_path / "a")

    assert (refused.code, "cannot show the class '$5'" in refused.err) == (2, True)
    assert '[labeling] backend = "csv"' in refused.err
    assert not (tmp_path / "a").exists()

    project = make_project(tmp_path, n=4, classes=("cat", "$5"))  # answered by an oracle, which can
    write_settings(project, project={"classes": ["cat", "$5"]}, labeling={"backend": "label-studio"})
    refused = step(project)

    assert (refused.code, "cannot show the class '$5'" in refused.err) == (2, True)
    assert value(project, "SELECT count(*) FROM round") == 0


def test_init_takes_a_labeling_back_end_and_says_only_what_it_needs(tmp_path: Path):
    sheets = alloop("init", tmp_path / "sheets", "--classes", "cat,dog", "--backend", "csv")
    usual = alloop("init", tmp_path / "usual", "--classes", "cat,dog")
    refused = alloop("init", tmp_path / "other", "--classes", "cat,dog", "--backend", "cvs")

    assert sheets.code == usual.code == 0
    assert 'backend = "csv"' in (tmp_path / "sheets" / "alloop.toml").read_text()
    assert "url =" not in (tmp_path / "sheets" / "alloop.toml").read_text()
    assert ("LABEL_STUDIO" in sheets.out, "LABEL_STUDIO" in usual.out) == (False, True)
    assert refused.code == 2
    assert "did you mean 'csv'?" in refused.err and not (tmp_path / "other").exists()


def test_init_makes_a_workspace_once_and_says_what_is_next(tmp_path: Path):
    made = alloop("init", tmp_path / "pets", "--classes", "cat, dog", "--images", tmp_path / "photos")

    assert made.code == 0
    assert "Made " in made.out
    assert "alloop pool add\n" in made.out
    again = alloop("init", tmp_path / "pets", "--classes", "cat,dog")
    assert again.code == 1
    assert "already exists" in again.err
    assert alloop("status", "-C", tmp_path / "pets").out.startswith("Project       pets: 0 images.\n")
    assert alloop("db", "check", "-C", tmp_path / "pets").code == 0


def test_a_folder_that_is_no_workspace_is_said_to_be_none(tmp_path: Path):
    refused = alloop("status", "-C", tmp_path)

    assert refused.code == 2
    assert "is not an alloop workspace" in refused.err
    assert "alloop init" in refused.err
    assert alloop("run", "-C", tmp_path / "nowhere").code == 2


def test_no_images_are_said_to_be_missing(tmp_path: Path):
    project = make_project(tmp_path, n=0, add=False)

    refused = step(project)
    assert refused.code == 1
    assert "The pool has no usable images." in refused.err
    assert "alloop pool add" in refused.err
    assert value(project, "SELECT count(*) FROM round") == 0
    assert "No images were named." in alloop("pool", "add", "-C", project.folder).err
    (project.folder / "empty").mkdir()
    assert "No images found in" in alloop("pool", "add", project.folder / "empty", "-C", project.folder).err
    assert "matches" in alloop("pool", "add", project.folder / "nothing*.png", "-C", project.folder).err


def test_one_image_is_too_few(tmp_path: Path):
    project = make_project(tmp_path, n=1)

    assert "The pool has 1 usable image (1 different)" in step(project).err


def project_with_labels(tmp_path: Path, wanted: dict[str, int], classes: tuple[str, ...]) -> Project:
    """A pool with so many imported labels of some classes, answered by the oracle from then on."""
    project = make_project(tmp_path, n=0, add=False, classes=classes, evaluation={"holdout_size": 1})
    write_pool(project.folder / "photos", 12, classes=classes)
    number = 500
    for label, n in wanted.items():
        for _ in range(n):
            write_picture(project.folder / "known" / f"{number}.png", label=label, number=number, classes=classes)
            with (project.folder / "known.csv").open("a") as file:
                file.write(("" if file.tell() else "file,label\n") + f"known/{number}.png,{label}\n")
            number += 1
    for folder in ("photos", "known"):
        assert alloop("pool", "add", project.folder / folder, "-C", project.folder).code == 0
    at_bench(project, import_labels, project.folder / "known.csv")
    return project


def test_labels_of_one_class_are_too_few_to_train_on_and_the_round_goes_on_at_random(tmp_path: Path):
    project = project_with_labels(tmp_path, {"cat": 8}, CLASSES)

    shown = alloop("train", "-C", project.folder)
    assert shown.out == "Round 0: too few labels to train a model; two classes need at least one label each.\n"
    assert value(project, "SELECT count(*) FROM model_version") == 0
    done = step(project)
    assert done.code == 0
    assert value(project, "SELECT count(DISTINCT reason) FROM query WHERE reason IN ('seed', 'holdout')")


def test_a_class_without_labels_and_fewer_labels_than_classes_can_be_trained(tmp_path: Path):
    classes = ("cat", "dog", "bird", "fish", "cow")
    project = project_with_labels(tmp_path, {"cat": 2, "dog": 2}, classes)

    shown = alloop("train", "-C", project.folder, "--json")

    assert shown.code == 0, shown.err
    assert value(project, "SELECT n_labels FROM model_version") in {3, 4}  # one may be the holdout image
    assert alloop("score", "-C", project.folder).code == 0
    assert step(project).code == 0


def test_a_second_alloop_is_told_to_come_back(tmp_path: Path):
    project = make_project(tmp_path, n=10)
    with writer(project.database, actor()):
        for command in (("run",), ("train",), ("pull",), ("pool", "check"), ("evaluate",)):
            refused = alloop(*command, "-C", project.folder)
            assert refused.code == 75
            assert "Another alloop is working on this workspace: " in refused.err
            assert f"pid {os.getpid()}" in refused.err
        assert alloop("status", "-C", project.folder).code == 0
        assert alloop("pool", "list", "-C", project.folder).code == 0

    assert step(project).code == 0


def test_a_database_of_a_newer_alloop_is_refused(tmp_path: Path):
    project = make_project(tmp_path, n=5)
    with project.database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    for command in (("run",), ("status",), ("db", "check"), ("db", "upgrade")):
        refused = alloop(*command, "-C", project.folder)
        assert refused.code == 1
        assert "schema 9999" in refused.err
        assert "pip install --upgrade alloop" in refused.err
    assert alloop("db", "backup", "-C", project.folder).code == 0


def test_an_empty_database_is_upgraded_on_demand(tmp_path: Path):
    project = make_project(tmp_path, n=5)
    project.close()
    for path in project.folder.glob("alloop.db*"):
        path.unlink()

    refused = step(project)
    assert refused.code == 1
    assert "`alloop db upgrade`" in refused.err
    assert (
        alloop("db", "upgrade", "-C", project.folder).out
        == f"The database was upgraded from schema none to {head_revision()}.\n"
    )
    assert "The pool has no usable images" in step(project).err


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path):
    project = make_project(tmp_path, n=5)
    project.close()
    for path in project.folder.glob("alloop.db*"):
        path.unlink()
    (project.folder / "alloop.db").write_bytes(b"these are not the pages you are looking for" * 100)

    refused = step(project)

    assert refused.code == 1
    assert "alloop.db" in refused.err
    assert "not a database" in refused.err


def test_wrong_settings_are_exit_code_two_and_with_json_also_on_stdout(tmp_path: Path):
    project = make_project(tmp_path, n=5)
    with (project.folder / "alloop.toml").open("a") as file:
        file.write("[looop]\n")

    refused = alloop("status", "-C", project.folder, "--json")

    assert refused.code == 2
    assert refused.data["exit_code"] == 2
    assert "'looop'; did you mean 'loop'?" in refused.data["error"]
    assert refused.err.startswith("Error: ")
    assert "Traceback" not in refused.err


def test_a_traceback_is_shown_only_with_vv(tmp_path: Path):
    assert "Traceback" not in alloop("status", "-C", tmp_path, "-v").err
    for flags in (["-vv"], ["-v", "-v"], ["-qvv"]):
        assert "Traceback" in alloop("status", "-C", tmp_path, *flags).err


def test_an_oracle_without_an_answer_names_the_image_and_sends_nothing(tmp_path: Path):
    project = make_project(tmp_path, n=20)
    (project.folder / "truth.csv").write_text("file,label\n")

    refused = step(project)

    assert refused.code == 1
    assert "has no label for" in refused.err
    assert value(project, "SELECT count(*) FROM task") == 0
    write_pool(project.folder / "photos", 20)
    assert step(project).code == 0


def test_a_backbone_that_is_not_one_is_named(tmp_path: Path):
    project = write_settings(make_project(tmp_path), model={"backbone": "resnet5O"})
    step(project)

    refused = step(project)

    assert refused.code in {1, 2}
    assert "resnet5O" in refused.err
    assert value(project, "SELECT state FROM round WHERE number = 1") == "created"


def test_a_holdout_that_cannot_be_read_is_not_measured(tmp_path: Path):
    project = at_round_one(tmp_path, "train")
    before = value(project, "SELECT count(*) FROM metric")
    shutil.rmtree(project.folder / "cache")
    for photo in (project.folder / "photos").iterdir():
        photo.write_bytes(b"a disk that lost its files' content")

    refused = alloop("evaluate", "-C", project.folder)

    assert refused.code == 1
    assert "None of the 8 labeled holdout images can be read." in refused.err
    assert value(project, "SELECT count(*) FROM metric") == before


def test_json_for_programs_has_null_where_a_number_is_not_finite(capsys: pytest.CaptureFixture[str]):
    from alloop.cli._options import Session

    Session(Path(), as_json=True, verbosity=0).show({"a": [float("nan"), (1.5, float("-inf"))], "b": {"c": "nan"}})

    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": [None, [1.5, None]],
        "b": {"c": "nan"},
    }
