"""A small workspace that has learned, with hostile names everywhere: only to be read."""

import pytest
from factories import add_truth, at_bench, make_project, tools_of, write_picture

from alloop.loop.intake.ingest import add_images
from alloop.loop.rounds.runner import RunOptions, run
from alloop.project import Project

HOSTILE = ("<script>alert(1)", '"onload="x', "שלום")
HOSTILE_PROJECT = "<img src=x onerror=alert(2)>"


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two rounds with classes, a project and a file whose names are hostile. Only to be read."""
    name = {"name": HOSTILE_PROJECT}
    project = make_project(tmp_path_factory.mktemp("served"), n=40, classes=HOSTILE, project=name)
    picture = write_picture(
        project.folder / "photos" / "a <b>&amp;#?%+ é.png", label=HOSTILE[0], number=99, classes=HOSTILE
    )
    add_truth(project.folder / "truth.csv", {str(picture): HOSTILE[0]})
    at_bench(project, add_images, [str(picture)])
    run(tools_of(project), RunOptions(rounds=2))
    return project
