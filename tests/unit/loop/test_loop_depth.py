"""Images with more than 8 bits a channel: one depth for the whole pool, for the model and for people."""

import contextlib
import dataclasses
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from command_line import alloop
from factories import CLASSES, add_truth, at_bench, make_project, tools_of, write_pool
from PIL import Image

from alloop.engine.executor_local import LocalExecutor
from alloop.files import sha256_of
from alloop.loop.choosing.explain import explain
from alloop.loop.intake.ingest import add_images
from alloop.loop.workspace import upgrade_database
from alloop.pool.picture import picture_of
from alloop.project import Project, open_project
from alloop.records import ImageRef
from alloop.report.explain import write_explanation
from alloop.report.shown import TASKS
from alloop.simulate.base import Base, prepare_images
from alloop.simulate.labeled import read_folder
from alloop.store.images import list_refs
from alloop.store.session import reading

SCHEMAS = Path(__file__).parents[2] / "assets" / "schemas"


def write_deep(folder: Path, n: int, bits: int, *, first: int = 0) -> None:
    """The pictures of `write_pool` in gray, with so many bits of 16; those of 8 bits lie in `eight` beside it."""
    truth = {}
    for path, label in write_pool(folder.parent / "eight", n, first=first).items():
        gray = np.asarray(Image.open(path).convert("L")).astype(np.uint16) << (bits - 8)
        gray[0, 0] = (1 << bits) - 1
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"{Path(path).stem}.png"
        Image.fromarray(gray).save(place)
        truth[str(place)] = label
    add_truth(folder.parent / "truth.csv", truth)


def deep_project(tmp_path: Path, n: int = 30, bits: int = 12, **changes) -> Project:
    project = make_project(tmp_path, n=0, add=False, pool={"near_duplicates": False, "images": ["photos"]}, **changes)
    write_deep(project.folder / "photos", n, bits)
    return project


def refs_of(project: Project) -> list[ImageRef]:
    with reading(project.database) as session:
        return list_refs(session)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_pool_add_says_how_deep_images_are_read(tmp_path: Path, bits: int):
    project = deep_project(tmp_path, 4, bits)

    added = alloop("pool", "add", "-C", project.folder)

    assert (
        f"4 images hold {bits}-bit data in 16-bit files: the model and people see 0 as black and "
        f"{2**bits - 1} as white." in added.out
    )
    for ref in refs_of(project):
        assert ref.depth == bits
        assert ref.key != ref.sha256
        levels = np.asarray(picture_of(ref))
        assert (int(levels.max()), int(levels.std()) > 20) == (255, True)


def test_the_model_gets_nearly_the_pixels_of_the_same_pictures_in_eight_bits(tmp_path: Path):
    project = deep_project(tmp_path, 4)
    at_bench(project, add_images, [str(project.folder / "photos")])

    for ref in refs_of(project):
        eight = np.asarray(Image.open(project.folder / "eight" / Path(ref.path).name).convert("L"))
        # The corner holds the largest value. The others: v x 16 x 255 / 4095 is less than a level below v.
        difference = np.abs(np.asarray(picture_of(ref)).astype(int)[..., 0] - eight)
        assert difference.ravel()[1:].max() <= 1


def test_eight_bit_images_keep_key_and_pixels_beside_deep_ones(tmp_path: Path):
    project = deep_project(tmp_path, 2)
    at_bench(project, add_images, [str(project.folder / "photos"), str(project.folder / "eight")])

    plain = [ref for ref in refs_of(project) if "/eight/" in ref.path]

    assert [(ref.depth, ref.key) for ref in plain] == [(None, ref.sha256) for ref in plain]
    assert np.array_equal(np.asarray(picture_of(plain[0])), np.asarray(Image.open(plain[0].path)))


def test_a_larger_value_raises_the_depth_of_all_and_says_what_is_computed_anew(tmp_path: Path):
    project = deep_project(tmp_path, 30, 10)
    alloop("pool", "add", "-C", project.folder)
    assert alloop("run", "-C", project.folder).code == 0  # round 0 is closed
    assert alloop("train", "-C", project.folder).code == 0
    before = {ref.sha256: ref.key for ref in refs_of(project)}
    write_deep(project.folder / "photos", 1, 14, first=50)

    added = alloop("pool", "add", "-C", project.folder)

    assert (
        "31 images hold 14-bit data in 16-bit files: the model and people see 0 as black and 16383 as white."
        in added.out
    )
    assert (
        "needs 14 bits, not 10: the features of the 30 such images that were in the pool are computed again"
        in added.err
    )
    assert "and round 1 is trained again" in added.err
    now = {ref.sha256: ref.key for ref in refs_of(project)}
    assert {ref.depth for ref in refs_of(project)} == {14}
    assert not set(now.values()) & set(before.values())
    assert alloop("score", "-C", project.folder).code != 0  # no model of another depth is left to score with
    assert alloop("run", "-C", project.folder).code == 0
    again = alloop("pool", "add", "--json", "-C", project.folder).data
    assert (again["depth"], again["changed_depth"], again["round_again"]) == (14, 0, None)


def test_a_model_of_another_depth_is_not_measured(tmp_path: Path):
    project = deep_project(tmp_path, 30, 10)
    alloop("pool", "add", "-C", project.folder)
    assert alloop("run", "--rounds", "2", "-C", project.folder).code == 0
    assert alloop("evaluate", "-C", project.folder).code == 0
    write_deep(project.folder / "photos", 1, 14, first=50)
    alloop("pool", "add", "-C", project.folder)

    refused = alloop("evaluate", "-C", project.folder)

    assert refused.code == 1
    assert "was trained on images read with 10 bits, but the pool's images are now read with 14 bits" in refused.err
    assert alloop("run", "-C", project.folder).code == 0
    assert alloop("evaluate", "-C", project.folder).code == 0
    assert alloop("replay", "1", "-C", project.folder).code == 0  # at the depth of that time


def write_faint(folder: Path, n: int, bits: int) -> None:
    """Stripes of 771 ± 100 of 4095, upright for one class: gone where three levels of black are all that is left."""
    folder.mkdir(parents=True)
    truth = {}
    for number in range(n):
        stripes = np.where(np.arange(16) % 4 < 2, 100, -100).reshape((16, 1) if number % 2 else (1, 16))
        shot = 771 + stripes + np.random.default_rng(number).normal(0, 8, (16, 16)).round().astype(int)
        shot[0, 0] = 4095
        place = folder / f"{number:04d}.png"
        Image.fromarray((shot >> (12 - bits)).astype(np.uint16 if bits > 8 else np.uint8)).save(place)
        truth[str(place)] = CLASSES[number % 2]
    add_truth(folder.parent / "truth.csv", truth)


def test_deep_data_is_learned_as_well_as_the_same_data_in_eight_bits(tmp_path: Path):
    accuracy = {}
    for bits in (8, 12):
        holdout = {"holdout_size": 20, "holdout_share": 0.4, "matched_arm": False}
        pool = {"near_duplicates": False, "images": ["photos"]}
        project = make_project(tmp_path / str(bits), n=0, add=False, pool=pool, evaluation=holdout)
        write_faint(project.folder / "shots", 50, bits)
        alloop("pool", "add", project.folder / "shots", "-C", project.folder)
        assert alloop("run", "--rounds", "4", "-C", project.folder).code == 0
        accuracy[bits] = alloop("evaluate", "--json", "-C", project.folder).data["metrics"]["accuracy"]["value"]

    assert accuracy == {8: 1.0, 12: 1.0}


def test_near_copies_are_found_across_depths_and_dark_pictures_are_not_all_one(tmp_path: Path):
    project = make_project(tmp_path, n=0, add=False)
    photos = project.folder / "photos"
    write_deep(photos, 8, 12)
    scene = np.asarray(Image.open(photos / "0000.png")).astype(np.uint16) // 5
    scene[0, 0] = 1000
    Image.fromarray(scene).save(photos / "dark.png")  # 10 bits
    scene[0, 0] = 1030
    Image.fromarray(scene).save(photos / "dark copy.png")  # 12 bits

    added = at_bench(project, add_images, [str(photos)])

    assert (added.new, added.near_duplicates, added.depth) == (10, 1, 12)


def test_a_sheet_names_a_picture_that_any_program_shows(tmp_path: Path):
    project = deep_project(tmp_path, 12, labeling={"backend": "csv"})
    alloop("pool", "add", "-C", project.folder)
    assert alloop("run", "-C", project.folder).code == 0

    (sheet,) = (project.folder / "sheets").glob("*.csv")
    pictures = [
        cell for line in sheet.read_text().splitlines()[1:] for cell in line.split(",") if cell.endswith(".png")
    ]
    by_key = {ref.key: ref for ref in refs_of(project)}
    assert pictures
    for picture in pictures:
        shown = np.asarray(Image.open(picture))
        assert np.array_equal(shown, np.asarray(picture_of(by_key[Path(picture).stem])))
        assert (shown.dtype, shown.max()) == (np.uint8, 255)
    header, *rows = sheet.read_text().splitlines()
    sheet.write_text("\n".join([header, *(f"cat{row}" for row in rows)]) + "\n")
    assert alloop("run", "-C", project.folder).code == 0
    assert alloop("status", "--json", "-C", project.folder).data["pool"]["labeled"] == len(rows)


def test_the_page_of_an_explanation_shows_the_pixels_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = deep_project(tmp_path, 12)
    alloop("pool", "add", "-C", project.folder)
    seen: list[ImageRef] = []

    def watched(image: ImageRef) -> Image.Image:
        seen.append(image)
        return picture_of(image)

    monkeypatch.setattr("alloop.report.explain.picture_of", watched)
    assert alloop("run", "-C", project.folder).code == 0
    found = explain(tools_of(project), str(project.folder / "photos" / "0003.png"))
    write_explanation(found, tmp_path / "page.html", TASKS[project.config.project.task])

    assert seen
    assert {image.depth for image in seen} == {12}


def test_a_labeled_folder_is_compared_and_simulated_at_one_depth(tmp_path: Path):
    (tmp_path / "all").mkdir()
    for label, (number, bits) in zip(CLASSES, ((0, 10), (100, 12)), strict=True):
        write_deep(tmp_path / label / "shots", 6, bits, first=number)
        (tmp_path / label / "shots").rename(tmp_path / "all" / label)

    data = read_folder(tmp_path / "all")
    base = Base(tmp_path / "base", tmp_path / "cache")
    config = make_project(tmp_path, n=0, add=False).config
    prepare_images(base, data, config, LocalExecutor(), None)

    assert {image.depth for image in data.images} == {12}
    with contextlib.closing(sqlite3.connect(base.database)) as connection:
        assert connection.execute("SELECT max(depth), count(depth) FROM image").fetchone() == (12, 12)
    # A workspace whose other images need 14 bits has its labeled ones read so, too.
    beyond = dataclasses.replace(data, images=[dataclasses.replace(image, depth=14) for image in data.images])
    prepare_images(Base(tmp_path / "other", tmp_path / "cache"), beyond, config, LocalExecutor(), None)
    with contextlib.closing(sqlite3.connect(tmp_path / "other" / base.database.name)) as connection:
        assert connection.execute("SELECT max(depth) FROM image").fetchone() == (14,)


def test_a_pool_of_an_earlier_schema_gets_its_depth_at_the_next_look(tmp_path: Path):
    project = make_project(tmp_path, n=0, add=False)
    write_deep(project.folder / "photos", 1, 12)
    file = project.folder / "photos" / "0000.png"
    project.close()
    database = project.folder / "alloop.db"
    shutil.copy(SCHEMAS / "0004.db", database)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        sha256, stat = sha256_of(file), file.stat()
        connection.execute("UPDATE image SET mode = 'I;16', sha256 = ? WHERE id = 1", [sha256])
        seen = [str(file), stat.st_size, stat.st_mtime_ns]
        connection.execute("UPDATE image_location SET path = ?, size = ?, mtime_ns = ? WHERE image_id = 1", seen)
        connection.commit()
    upgraded = open_project(project.folder, {}, check_schema=False)
    upgrade_database(upgraded)

    assert [(ref.image_id, ref.depth) for ref in refs_of(upgraded) if ref.depth is not None] == [(1, 16)]
    added = at_bench(upgraded, add_images, [str(project.folder / "photos")])

    assert (added.known, added.depth, added.changed_depth) == (1, 12, 1)
    assert [(ref.sha256, ref.depth) for ref in refs_of(upgraded) if ref.depth is not None] == [(sha256, 12)]
    upgraded.close()
