"""A restored database, a copied workspace, images that moved or changed: every answer stays with its own image."""

import csv
import shutil
from pathlib import Path

import pytest
from command_line import alloop
from factories import make_project, write_picture
from sqlalchemy import text

from alloop.files import sha256_of
from alloop.project import Project


def make_sheets(tmp_path: Path, n: int = 6) -> Project:
    """A workspace with sheets and one round at a time; the first run has asked about all images."""
    project = make_project(tmp_path, n, labeling={"backend": "csv"}, loop={"batch_size": 8})
    assert alloop("run", "-C", project.folder).code == 0
    return project


def sheets(folder: Path) -> list[Path]:
    return sorted((folder / "sheets").glob("*.csv"))


def fill(folder: Path, answer: str) -> int:
    """Answer every question that has no answer yet; returns how many."""
    n = 0
    for path in sheets(folder):
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
    lost.unlink()
    return project, add_picture(project, 202)


def test_answers_given_since_a_backup_go_to_no_other_image(restored: tuple[Project, Path]):
    project, new = restored

    ran = alloop("run", "-C", project.folder)

    assert ran.code == 0
    assert "1 of 1 images wait" in ran.out
    assert sha256_of(new) not in labels(project)
    assert fill(project.folder, "dog") == 1  # the new picture is asked about in a row of its own
    assert alloop("run", "-C", project.folder).code == 0
    assert labels(project)[sha256_of(new)] == "dog"
    assert set(labels(project).values()) == {"dog"}


def test_tasks_that_a_restored_database_does_not_know_are_reported(restored: tuple[Project, Path]):
    project, _ = restored
    assert alloop("run", "-C", project.folder).code == 0

    pulled = alloop("pull", "-C", project.folder, "--json")

    assert pulled.data["orphaned"] == 1
    assert pulled.data["foreign"] == 0
    assert "its database does not know" in pulled.err
