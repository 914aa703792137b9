"""A package of somebody else docks with one new file and one line: the entry point that names it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import alloop
from factories import make_project, write_settings
from sqlalchemy import text
from toys import memory
from toys.installed import install
from toys.notebook import Backend, Notebook
from toys.other_executor import LOG

from alloop.project import Project
from alloop.records import Outcome

NOTEBOOK = "[alloop.labeling]\nnotebook = toys.notebook:BACKEND"


def test_a_round_is_asked_and_answered_through_the_back_end_of_another_package(tmp_path: Path, monkeypatch):
    install(monkeypatch, tmp_path / "site", NOTEBOOK)
    options = {"file": "answers.json"}
    project = make_project(tmp_path / "project", n=20, labeling={"backend": "notebook"}, labeling__options=options)
    assert '"stage": "waiting"' in alloop("run", "-C", project.folder, "--json").out

    book = Notebook(project.folder / "answers.json")
    tasks = book.list_tasks()
    for task in tasks:
        book.answer(task.id, Outcome.LABEL, "cat" if int(task.sha256[0], 16) % 2 else "dog")
    assert alloop("run", "-C", project.folder).code == 0

    assert len(tasks) > 0
    status = json.loads(alloop("status", "-C", project.folder, "--json").out)
    assert status["pool"]["labeled"] == len(tasks)
    assert status["project_ref"] == "notebook"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("notebook = not_installed_anywhere:BACKEND", "of the package toys cannot be imported: ModuleNotFoundError"),
        ("notebook = toys.notebook:Notebook", "of the package toys is not a Backend"),
        ("notebook = integration.test_other_packages:MISNAMED", "notebook calls itself 'other'"),
    ],
)
def test_a_back_end_that_cannot_be_used_is_named_with_the_way_out(tmp_path: Path, monkeypatch, line, message):
    install(monkeypatch, tmp_path / "site", f"[alloop.labeling]\n{line}")
    project = make_project(tmp_path / "project", n=20)
    write_settings(project, labeling={"backend": "notebook"})

    refused = alloop("run", "-C", project.folder)

    assert refused.code == 2
    assert message in refused.err
    assert "set another [labeling] backend" in refused.err


def test_an_unknown_back_end_is_refused_with_those_that_exist(tmp_path: Path, monkeypatch):
    install(monkeypatch, tmp_path / "site", NOTEBOOK)
    project = make_project(tmp_path / "project", n=20)
    config = project.folder / "alloop.toml"
    before = config.read_text()

    config.write_text(before.replace('"oracle"', '"notebok"'))
    assert "did you mean 'notebook'?" in alloop("status", "-C", project.folder).err
    config.write_text(before.replace('"oracle"', '"paper"'))
    refused = alloop("status", "-C", project.folder)

    assert refused.code == 2
    assert "there is no labeling back end 'paper'; there are: label-studio, csv, oracle, notebook." in refused.err


EXECUTOR = "[alloop.executors]\nremembering = toys.other_executor:Remembering"


def test_jobs_run_where_another_package_says(tmp_path: Path, monkeypatch):
    install(monkeypatch, tmp_path / "site", EXECUTOR)
    monkeypatch.setenv("ALLOOP_EXECUTOR", "remembering")
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    project = make_project(tmp_path / "project", n=30)

    assert alloop("run", "--rounds", "2", "-C", project.folder).code == 0

    assert set((tmp_path / "log").read_text().split()) == {"TrainJob", "ScoreJob", "FeatureJob"}


@pytest.mark.parametrize(
    ("line", "name", "message"),
    [
        ("remembering = not_installed_anywhere:X", "remembering", "cannot be imported: ModuleNotFoundError"),
        ("remembering = toys.notebook:Notebook", "remembering", "remembering is not an Executor"),
        ("remembering = toys.other_executor:LOG", "remembering", "remembering is not an Executor"),
        ("remembering = toys.other_executor:Remembering", "remebering", "did you mean 'remembering'?"),
    ],
)
def test_an_executor_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch, line, name, message):
    install(monkeypatch, tmp_path / "site", f"[alloop.executors]\n{line}")
    project = make_project(tmp_path / "project", n=4)
    monkeypatch.setenv("ALLOOP_EXECUTOR", name)

    refused = alloop("run", "-C", project.folder)

    assert refused.code == 2
    assert message in refused.err


class Misnamed(Notebook):
    source = "other"


MISNAMED = Backend(lambda setup: Misnamed(setup.folder / "notebook.json"))


@pytest.fixture
def in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A workspace whose images are in memory, and one beside it with the same images as files."""
    install(monkeypatch, tmp_path / "site", "[alloop.sources]\nmem = toys.memory:MEMORY")
    project = make_project(tmp_path, n=24, name="memory", add=False, pool={"images": ["mem:pets"]})
    truth = (project.folder / "truth.csv").read_text().splitlines()
    for path in (project.folder / "photos").iterdir():
        memory.put(f"mem:pets/{path.name}", path.read_bytes())
    (project.folder / "truth.csv").write_text("\n".join([truth[0], *(f"mem:pets/{line}" for line in truth[1:])]))
    yield project
    memory.IMAGES.clear()


def asked(project: Project) -> list[tuple[str, ...]]:
    columns = "query.rank, query.strategy, query.reason, image.sha256, query.score"
    with project.database.connect() as connection:
        return connection.execute(
            text(f"SELECT {columns} FROM query JOIN image ON image.id = image_id ORDER BY 1, 4")
        ).all()


def test_images_of_another_packages_source_are_added_trained_on_and_scored_as_files_are(in_memory, tmp_path: Path):
    files = make_project(tmp_path, n=24, name="files", add=False, pool={"images": ["photos"]})

    for project in (in_memory, files):
        assert alloop("pool", "add", "-C", project.folder).code == 0
        assert alloop("run", "-C", project.folder, "--rounds", "2").code == 0

    assert len(asked(in_memory)) >= 12
    assert asked(in_memory) == asked(files)


def test_an_image_that_is_gone_and_a_source_that_is_unreachable_are_told_apart(in_memory, monkeypatch):
    assert alloop("pool", "add", "-C", in_memory.folder).code == 0
    gone, *_ = sorted(memory.IMAGES)

    monkeypatch.setattr(memory, "OFFLINE", ["no network"])
    refused = alloop("pool", "check", "-C", in_memory.folder)
    monkeypatch.setattr(memory, "OFFLINE", [])
    assert refused.code == 75
    assert "The memory cannot be reached: no network" in refused.err
    assert "24 images, 0 of them missing" in alloop("pool", "check", "-C", in_memory.folder).out

    held = dict(memory.IMAGES)
    memory.IMAGES.clear()
    refused = alloop("pool", "check", "-C", in_memory.folder)
    memory.IMAGES.update(held)
    assert refused.code == 75
    assert "24 of 24 images in mem:pets cannot be reached any more: the memory may have been cleared." in refused.err

    del memory.IMAGES[gone]
    assert f"missing\t{gone}" in alloop("pool", "check", "-C", in_memory.folder).out


def test_labels_of_images_elsewhere_are_known_from_their_folders_and_exported_as_copies(tmp_path: Path, monkeypatch):
    install(monkeypatch, tmp_path / "site", "[alloop.sources]\nmem = toys.memory:MEMORY")
    project = make_project(tmp_path, n=4, name="memory", add=False, pool={"images": []})
    pictures = [path.read_bytes() for path in sorted((project.folder / "photos").iterdir())]
    for number, data in enumerate(pictures):
        memory.put(f"mem:{'cat' if number % 2 else 'dog'}/{number}.png", data)

    assert alloop("pool", "add", "mem:", "--labels-from-folders", "-C", project.folder).code == 0
    exported = alloop("labels", "export", "-C", project.folder, "--format", "folders", tmp_path / "tree")

    assert exported.code == 0
    found = {path.parent.name: path.read_bytes() for path in sorted((tmp_path / "tree").glob("*/*.png"))}
    assert found == {"cat": pictures[3], "dog": pictures[2]}
    memory.IMAGES.clear()
