"""A workspace whose people were asked a few questions in a sheet, for tests that change it."""

from pathlib import Path

import pytest
from factories import copy_project, make_project, tools_of

from alloop.loop.rounds.runner import RunOptions, run
from alloop.project import Project

SHEETS = {"labeling": {"backend": "csv"}, "loop": {"batch_size": 5}, "evaluation": {"holdout_size": 3}}


@pytest.fixture(scope="session")
def asked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Round 0 asks about 8 of 24 images in one sheet."""
    project = make_project(tmp_path_factory.mktemp("asked"), 24, **SHEETS)
    run(tools_of(project), RunOptions())
    project.close()
    return project.folder


@pytest.fixture
def project(asked_folder: Path, tmp_path: Path) -> Project:
    return copy_project(asked_folder, tmp_path / "pets", {"project": {"classes": ["cat", "dog"]}, **SHEETS})
