"""A package of somebody else docks with one new file and one line: the entry point that names it."""

import json
from pathlib import Path

import pytest
from command_line import alloop
from factories import make_project, write_settings
from toys.installed import install
from toys.notebook import Backend, Notebook
from toys.other_executor import LOG

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
    text = config.read_text()

    config.write_text(text.replace('"oracle"', '"notebok"'))
    assert "did you mean 'notebook'?" in alloop("status", "-C", project.folder).err
    config.write_text(text.replace('"oracle"', '"paper"'))
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
