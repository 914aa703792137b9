"""Near copies when their settings or the labels change: groups follow, and the holdout never meets its copies."""

import csv
from pathlib import Path

import numpy as np
import pytest
from command_line import alloop
from factories import make_project, write_settings
from PIL import Image
from sqlalchemy import text

from alloop.loop.intake.near_copies import count_groups, list_groups
from alloop.project import Project
from alloop.store.images import find_splits, list_leaders
from alloop.store.session import reading

OFF = {"near_duplicates": False}
PARTS, SHOTS = 8, 3  # different parts; photos of each under one camera, which a fingerprint takes for copies
SMALL = {"evaluation": {"holdout_size": 2, "holdout_share": 0.25}, "loop": {"batch_size": 3}}


def write_shots(folder: Path) -> dict[str, str]:
    """Photo → class: of every part the last photo shows a scratch."""
    truth = {}
    folder.mkdir(parents=True)
    for part in range(PARTS):
        generator = np.random.default_rng(part)
        scene = np.asarray(Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)))
        for shot in range(SHOTS):
            noise = np.random.default_rng([part, shot]).integers(-2, 3, scene.shape)
            path = folder / f"part{part}-{shot}.png"
            Image.fromarray((scene.astype(int) + noise).clip(0, 255).astype(np.uint8)).save(path)
            truth[str(path)] = "dog" if shot == SHOTS - 1 else "cat"
    return truth


def parts(tmp_path: Path, **pool: object) -> Project:
    project = make_project(tmp_path, n=0, add=False, pool={"images": ["shots"], **pool}, **SMALL)
    with (project.folder / "truth.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *write_shots(project.folder / "shots").items()])
    return project


def names(project: Project) -> dict[int, str]:
    with project.database.connect() as connection:
        rows = connection.execute(text("SELECT image_id, path FROM image_location"))
        return {image_id: Path(path).stem for image_id, path in rows}


def groups(project: Project) -> set[frozenset[str]]:
    called, found = names(project), {}
    with reading(project.database) as session:
        for image_id, group in list_groups(session).items():
            found.setdefault(group, set()).add(called[image_id])
    return set(map(frozenset, found.values()))


def splits(project: Project, split: str) -> set[str]:
    called = names(project)
    with reading(project.database) as session:
        return {called[image_id] for image_id, found in find_splits(session).items() if found == split}


def part(name: str) -> str:
    return name.partition("-")[0]


def is_scratched(name: str) -> bool:
    return name.endswith(f"-{SHOTS - 1}")


def import_labels(project: Project, **said: str) -> None:
    path = project.folder / "said.csv"
    rows = [(f"{name.replace('_', '-')}.png", label) for name, label in said.items()]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    assert alloop("labels", "import", path, "-C", project.folder).code == 0


def edit(project: Project, **pool: object) -> Project:
    return write_settings(project, pool={"images": ["shots"], **pool}, **SMALL)


@pytest.mark.parametrize("command", ["run", "pool"])
def test_near_copies_that_are_no_longer_taken_for_such_are_given_back_and_the_holdout_stays(
    tmp_path: Path, command: str
):
    project = parts(tmp_path)
    at = ("-C", project.folder)
    assert "16 of 24 images count as near copies of another" in alloop("pool", "add", *at).out
    alloop("run", *at)
    before = splits(project, "holdout")
    assert len(before) == 2
    assert len(splits(project, "excluded")) == 4

    edit(project, **OFF)
    said = alloop("run", "-v", *at) if command == "run" else alloop("pool", "add", *at)

    told = said.err if command == "run" else said.out
    assert "16 of 24 images were near copies of another, now 0 are." in told
    assert "([pool] near_duplicates = false)" in told
    assert "4 that were excluded may be asked about and trained on again." in told
    assert splits(project, "holdout") == before
    assert splits(project, "excluded") == set()
    assert len(groups(project)) == 24
    while alloop("run", *at, "--json").data["stage"] != "done":
        pass
    with project.database.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM label")).scalar_one() == 24


def test_copies_of_holdout_images_are_set_aside_when_the_setting_finds_them_later(tmp_path: Path):
    project = parts(tmp_path, **OFF)
    at = ("-C", project.folder)
    assert "near copies" not in alloop("pool", "add", *at).out
    while alloop("run", *at, "--json").data["stage"] != "done":  # everything is labeled
        pass
    before = splits(project, "holdout")

    edit(project)
    added = alloop("pool", "add", *at, "--json").data

    assert "24 images were near copies of another, now 16 are" in added["regrouped"]
    assert "no model is trained on them" in added["regrouped"]
    assert splits(project, "holdout") == before
    held = {(part(name), is_scratched(name)) for name in before}
    trained = {(part(name), is_scratched(name)) for name in splits(project, "train") & labeled(project)}
    assert trained
    assert trained.isdisjoint(held)
    assert splits(project, "excluded")
    assert alloop("pool", "add", *at, "--json").data["regrouped"] == ""


def labeled(project: Project) -> set[str]:
    called = names(project)
    with project.database.connect() as connection:
        return {called[image_id] for (image_id,) in connection.execute(text("SELECT image_id FROM label"))}


@pytest.mark.parametrize("pool", [{}, {"near_duplicate_distance": 0}, {"near_duplicate_distance": 16}, OFF])
def test_groups_made_anew_are_those_that_adding_would_have_made(tmp_path: Path, pool: dict[str, object]):
    fresh, changed = parts(tmp_path / "fresh", **pool), parts(tmp_path / "changed", near_duplicate_distance=3)
    alloop("pool", "add", "-C", fresh.folder)
    alloop("pool", "add", "-C", changed.folder)

    edit(changed, **pool)
    alloop("pool", "add", "-C", changed.folder)

    assert groups(changed) == groups(fresh)
    with reading(changed.database) as one, reading(fresh.database) as other:
        assert list_leaders(one) == list_leaders(other)


def test_a_pool_whose_groups_were_made_by_an_alloop_that_did_not_say_how_is_brought_up_to_its_settings(tmp_path: Path):
    project = parts(tmp_path)
    alloop("pool", "add", "-C", project.folder)
    with project.database.begin() as connection:
        connection.execute(text("UPDATE workspace SET near_copies = NULL"))
    assert alloop("pool", "add", "-C", project.folder, "--json").data["regrouped"] == ""  # nothing is different

    with project.database.begin() as connection:
        connection.execute(text("UPDATE workspace SET near_copies = NULL"))
    edit(project, **OFF)

    assert "16 of 24 images were near copies" in alloop("run", "-C", project.folder).err


def test_labels_that_disagree_split_a_group_and_labels_that_agree_again_join_it(tmp_path: Path):
    project = parts(tmp_path)
    alloop("pool", "add", "-C", project.folder)
    together = frozenset({"part0-0", "part0-1", "part0-2"})
    assert together in groups(project)

    import_labels(project, part0_0="cat", part0_2="dog")

    found = [group for group in groups(project) if group & together]
    assert len(found) == 2
    assert {"part0-0"} <= next(group for group in found if "part0-2" not in group)
    with reading(project.database) as session:
        assert count_groups(session) == (PARTS * SHOTS, len(groups(project))) == (24, 9)
    import_labels(project, part0_1="dog")
    assert {frozenset({"part0-0"}), frozenset({"part0-1", "part0-2"})} <= groups(project)
    import_labels(project, part0_0="dog")
    assert together in groups(project)


def test_it_is_explained_that_a_larger_near_copy_is_asked(tmp_path: Path):
    project = parts(tmp_path)
    at = ("-C", project.folder)
    alloop("pool", "add", *at)
    sizes = {shot: (project.folder / "shots" / f"part0-{shot}.png").stat().st_size for shot in range(SHOTS)}

    said = {shot: alloop("explain", f"part0-{shot}.png", *at).out for shot in range(SHOTS)}

    largest = max(sizes, key=sizes.__getitem__)
    assert "It can be asked about." in said.pop(largest)
    assert all("A larger near copy of it can be asked about in its place." in words for words in said.values())


def test_a_copy_of_a_holdout_image_with_another_label_is_trained_on(tmp_path: Path):
    project = parts(tmp_path)
    at = ("-C", project.folder)
    alloop("pool", "add", *at)
    alloop("run", *at)
    alloop("run", *at)
    held = sorted(splits(project, "holdout") & labeled(project))[0]
    copies = sorted(name for name in splits(project, "excluded") if part(name) == part(held))
    called = names(project)
    with project.database.connect() as connection:
        rows = connection.execute(text("SELECT image_id, class_name FROM label"))
        label = {called[image_id]: class_name for image_id, class_name in rows}[held]
    other = "cat" if label == "dog" else "dog"

    import_labels(project, **{copies[0].replace("-", "_"): other})

    assert held in splits(project, "holdout")
    assert copies[0] in splits(project, "train")
    import_labels(project, **{copies[0].replace("-", "_"): label})
    assert set(copies) <= splits(project, "excluded")
