"""Pools that vanish at once because a disk is not mounted: nothing is recorded, and a later run continues."""

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import alloop
from factories import add_truth, at_bench, make_project, write_pool
from sqlalchemy import text
from sqlalchemy.orm import Session

from alloop.errors import SourceUnreachable
from alloop.loop.intake.ingest import mark_unusable, mark_vanished
from alloop.loop.intake.reach import check_reachable
from alloop.loop.workbench import Workbench
from alloop.project import Project
from alloop.store.images import list_refs
from alloop.store.session import reading, transaction


def statuses(project: Project) -> dict[str, int]:
    with project.database.connect() as connection:
        return dict(connection.execute(text("SELECT status, count(*) FROM image_location GROUP BY 1")).all())


def value(project: Project, statement: str) -> object:
    with project.database.connect() as connection:
        return connection.execute(text(statement)).scalar_one()


def in_transaction(bench: Workbench, change: Callable[[Session, Workbench], object]) -> None:
    with transaction(bench.project.database) as session:
        change(session, bench)


def unmount(project: Project) -> None:
    """Leave an empty folder, as a removed mount does."""
    (project.folder / "photos").rename(project.folder / "disk")
    (project.folder / "photos").mkdir()


def mount(project: Project) -> None:
    (project.folder / "photos").rmdir()
    (project.folder / "disk").rename(project.folder / "photos")


@pytest.mark.parametrize("place", ["photos", "photos/*.png", None])
def test_a_first_run_without_the_disk_is_a_temporary_failure(tmp_path: Path, place: str | None):
    project = make_project(tmp_path, 8, pool={"images": [] if place is None else [place]})
    unmount(project)

    refused = alloop("run", "-C", project.folder)

    assert refused.code == 75
    assert f"8 of 8 images in {project.folder / 'photos'} cannot be reached any more" in refused.err
    assert statuses(project) == {"ok": 8}
    mount(project)
    assert alloop("run", "-C", project.folder, "--json").data["stage"] == "advanced"


def test_every_step_that_would_record_missing_images_waits_for_the_disk(tmp_path: Path):
    project = make_project(tmp_path, 24, pool={"images": ["photos"]})
    at = ("-C", project.folder)
    assert alloop("run", *at).code == 0
    unmount(project)

    for command in (
        ("train",),
        ("run",),
        ("pool", "add"),
        ("pool", "add", project.folder / "photos"),
        ("pool", "check"),
    ):
        refused = alloop(*command, *at)
        assert (refused.code, "cannot be reached any more" in refused.err) == (75, True), command
    mount(project)
    assert alloop("train", *at).code == 0
    unmount(project)
    assert [alloop(name, *at).code for name in ("score", "evaluate", "run")] == [75, 75, 75]
    assert alloop("predict", "--pool", "-o", tmp_path / "out.csv", *at).code == 75
    assert not (tmp_path / "out.csv").exists()
    mount(project)
    for name in ("score", "select"):
        assert alloop(name, *at).code == 0
    unmount(project)
    assert [alloop(name, *at).code for name in ("push", "run")] == [75, 75]

    assert statuses(project) == {"ok": 24}
    assert value(project, "SELECT count(*) FROM query WHERE status = 'withdrawn'") == 0
    mount(project)
    assert alloop("run", *at).code == 0


def test_choosing_does_not_use_up_a_pool_that_vanishes_meanwhile(tmp_path: Path):
    project = make_project(tmp_path, 24)
    at = ("-C", project.folder)
    for name in ("train", "score"):
        assert alloop(name, *at).code == 0
    unmount(project)

    refused = alloop("select", *at)

    assert refused.code == 75
    assert statuses(project) == {"ok": 24}
    with reading(project.database) as session:
        refs = list_refs(session)
    for mark in (
        lambda session, bench: mark_vanished(session, bench, [refs[0].path]),
        lambda session, bench: mark_unusable(session, bench, [(refs[0].image_id, "no such file")]),
    ):
        with pytest.raises(SourceUnreachable):
            at_bench(project, in_transaction, mark)
    assert statuses(project) == {"ok": 24}


@pytest.mark.parametrize(("n", "gone", "much"), [(24, 13, True), (24, 12, False), (18, 9, False), (12, 12, True)])
def test_much_is_more_than_half_and_ten_or_all(tmp_path: Path, n: int, gone: int, much: bool):
    project = make_project(tmp_path, n)
    for path in sorted((project.folder / "photos").glob("*.png"))[:gone]:
        path.unlink()

    checked = alloop("pool", "check", "-C", project.folder)

    assert checked.code == (75 if much else 0)
    assert statuses(project) == ({"ok": n} if much else {"ok": n - gone, "missing": gone})


def test_what_is_gone_for_good_is_accepted_and_what_comes_back_is_found_by_the_next_run(tmp_path: Path):
    project = make_project(tmp_path, 24)
    at = ("-C", project.folder)
    assert alloop("run", *at).code == 0
    unmount(project)
    assert alloop("pool", "check", "--accept-missing", *at).code == 0
    assert statuses(project) == {"missing": 24}
    done = alloop("run", *at)
    assert (done.code, done.out.startswith("Done: pool exhausted")) == (0, True)
    assert "24 files are missing" in done.out

    mount(project)
    ran = alloop("run", *at)

    assert statuses(project) == {"ok": 24}
    assert "24 missing files of the pool were found again." in ran.err
    assert "is closed" in ran.out


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path):
    project = make_project(tmp_path, 24)
    broken = project.folder / "photos" / "0003.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:50])
    with reading(project.database) as session:
        (image_id,) = (ref.image_id for ref in list_refs(session) if ref.path == str(broken))
    at_bench(project, in_transaction, lambda session, bench: mark_unusable(session, bench, [(image_id, "truncated")]))
    assert alloop("run", "-C", project.folder).code == 0
    assert statuses(project) == {"ok": 23, "unreadable": 1}
    broken.write_bytes(content)

    assert alloop("run", "-C", project.folder).code == 0

    assert statuses(project) == {"ok": 24}


def test_images_that_moved_are_added_from_where_they_are_now(tmp_path: Path):
    project = make_project(tmp_path, 16, pool={"images": ["photos"]})
    at = ("-C", project.folder)
    inner = project.folder / "photos" / "sorted"
    inner.mkdir()
    for path in (project.folder / "photos").glob("*.png"):
        path.rename(inner / path.name)
    add_truth(project.folder / "truth.csv", {str(path): "cat" for path in inner.glob("*.png")})
    refused = alloop("run", *at)
    assert (refused.code, "`alloop pool add` with their new folder" in refused.err) == (75, True)

    assert alloop("pool", "add", *at, "--json").data["known"] == 16

    assert alloop("run", *at).code == 0


def test_one_folder_of_several_is_missed(tmp_path: Path):
    project = make_project(tmp_path, 20, name="pets[1]", pool={"images": ["photos", "more/*/*.png"]})
    write_pool(project.folder / "more" / "2024", 3, first=100)
    assert alloop("pool", "add", "-C", project.folder, "--json").data["new"] == 3
    (project.folder / "more").rename(project.folder / "away")

    with reading(project.database) as session:
        with pytest.raises(SourceUnreachable) as caught:
            check_reachable(session, project)
        check_reachable(session, project, [str(project.folder / "photos")])

    assert f"3 of 3 images in {project.folder / 'more'} cannot" in caught.value.message


def test_a_path_that_never_held_images_is_still_an_error(tmp_path: Path):
    project = make_project(tmp_path, 8)
    (project.folder / "empty").mkdir()

    assert alloop("pool", "add", project.folder / "empty", "-C", project.folder).code == 1
    assert alloop("pool", "add", project.folder / "nowhere", "-C", project.folder).code == 1
