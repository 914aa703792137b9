"""Images added many at once: the rows are those of images that come one by one."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from databases import NewUrl
from databases import new_url as new_url
from factories import NOW, at_bench, make_project, tools_of
from PIL import Image
from sqlalchemy import select

from alloop.loop.intake import ingest
from alloop.loop.intake.ingest import Added, add_images
from alloop.project import Project
from alloop.records import LocationStatus, Split
from alloop.store.images import list_image_paths, list_locations, set_split
from alloop.store.session import reading, transaction
from alloop.store.tables import TableBase

SCENES, SHOTS = 5, 3  # different scenes; photos of each, which are near copies
Rows = dict[str, list[dict[str, Any]]]


def write_photo(path: Path, scene: int, shot: int) -> Path:
    coarse = np.random.default_rng(scene).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((64, 64))).astype(int)
    picture += np.random.default_rng([scene, shot]).integers(-2, 3, picture.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    return path


def write_photos(folder: Path) -> None:
    for number in range(SCENES * SHOTS):
        scene, shot = number % SCENES, number // SCENES
        write_photo(folder / ("dog" if shot == 2 else "cat") / f"{number:02d}.png", scene, shot)
    (folder / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / "Thumbs.db").write_text("left out")
    shutil.copy(folder / "cat" / "00.png", folder / "cat" / "again.png")


def change_photos(folder: Path) -> None:
    """Replace a file by another image, repair one, touch one, break one; add copies of the image of scene 3."""
    write_photo(folder / "cat" / "01.png", 100, 0)
    write_photo(folder / "cat" / "broken.png", 101, 0)
    (folder / "cat" / "02.png").touch()
    (folder / "cat" / "04.png").write_bytes(b"no image any more")
    for shot in (7, 8):
        write_photo(folder / "cat" / f"new-{shot}.png", 3, shot)
    write_photo(folder / "dog" / "new.png", 102, 0)
    (folder / "cat" / "05.png").rename(folder / "cat" / "moved.png")


def fill(project: Project) -> list[Added]:
    """Add photos, measure on one of them, change the files, and add all again with labels from folders."""
    photos = project.folder / "photos"
    tools = tools_of(project, clock=lambda: NOW)
    first = at_bench(tools, add_images, [str(photos)])
    with transaction(project.database) as session:
        ids = {path: image_id for image_id, path in list_image_paths(session, LocationStatus.OK)}
        set_split(session, [ids[str(photos / "cat" / "03.png")]], Split.HOLDOUT)
    change_photos(photos)
    second = at_bench(tools, add_images, [str(photos)], labels_from_folders=True)
    return [first, second, at_bench(tools, add_images, [str(photos)], labels_from_folders=True)]


def project_with_photos(folder: Path, **changes: Any) -> Project:
    project = make_project(folder, n=0, add=False, **changes)
    write_photos(project.folder / "photos")
    return project


def rows_of(project: Project, *but: str) -> Rows:
    """All rows of all tables, with paths relative to the workspace and without what differs between two workspaces."""
    rows: Rows = {}
    with reading(project.database) as session:
        for table in TableBase.metadata.sorted_tables:
            if table.name not in ("lease", *but):
                found = session.execute(select(table).order_by(*table.primary_key.columns)).mappings()
                rows[table.name] = [_comparable(dict(row), project.folder) for row in found]
    return rows


def _comparable(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    same = {name: value for name, value in row.items() if name not in ("at", "uuid", "created_at", "mtime_ns")}
    return same | ({"path": os.path.relpath(row["path"], folder)} if row.get("path") else {})


@pytest.fixture
def whole(tmp_path: Path, new_url: NewUrl) -> tuple[list[Added], Rows]:
    """What is reported, and all rows, where all files are one batch."""
    project = project_with_photos(tmp_path / "whole", database={"url": new_url()})
    return fill(project), rows_of(project)


@pytest.mark.parametrize("size", [1, 7])
def test_batches_of_any_size_leave_the_same_rows(
    size: int, whole: tuple[list[Added], Rows], tmp_path: Path, new_url: NewUrl, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ingest, "BATCH", size)
    project = project_with_photos(tmp_path / "parts", database={"url": new_url()})

    assert fill(project) == whole[0]

    assert rows_of(project) == whole[1]


def test_what_was_added_is_counted(whole: tuple[list[Added], Rows]):
    first, second, third = whole[0]
    images = {row["id"]: row["split"] for row in whole[1]["image"]}

    assert (first.new, first.known, first.unreadable, first.near_duplicates) == (15, 1, 1, 10)
    assert (first.skipped, first.left_out) == (1, {"Thumbs.db": 1})
    # Given two new scenes, a repaired file, two more copies of scene 3, a moved, a touched and a broken file
    assert (second.new, second.known, second.unreadable, second.near_duplicates) == (5, 2, 1, 2)
    assert (third.new, third.known, third.unreadable, third.labeled) == (0, 0, 1, 0)
    # Scene 3 has a holdout image, so its unlabeled and its equally labeled photos are set aside
    assert list(images.values()).count("excluded") == 3


def test_a_killed_call_is_continued_by_the_next(
    tmp_path: Path, whole: tuple[list[Added], Rows], new_url: NewUrl, monkeypatch: pytest.MonkeyPatch
):
    class Killed(Exception):
        pass

    def kill(label: str, done: int, total: int) -> None:
        if (label, done) == ("reading images", 8):
            raise Killed

    monkeypatch.setattr(ingest, "BATCH", 4)
    project = project_with_photos(tmp_path / "killed", database={"url": new_url()})
    with pytest.raises(Killed):
        at_bench(tools_of(project, progress=kill), add_images, [str(project.folder / "photos")])
    with reading(project.database) as session:
        assert len(list_locations(session)) == 8

    fill(project)

    assert rows_of(project, "event", "image_location", "image")["near_duplicate"] == whole[1]["near_duplicate"]
    hashes = [[row["sha256"] for row in rows["image"]] for rows in (rows_of(project), whole[1])]
    assert hashes[0] == hashes[1]
