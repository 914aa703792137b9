"""Behavior of every image source that the rest of alloop relies on: local files, and a toy of another package."""

import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import memory
from toys.installed import install

from alloop.errors import PoolError, SourceUnreachable
from alloop.pool.ingest import inspect_file
from alloop.pool.local_files import LOCAL_DISK
from alloop.pool.sources import ImageSource, Skipped, folder_of, name_of
from alloop.records import ImageFile, UnreadableFile


@dataclasses.dataclass
class World:
    """A source and the means to change its images.

    Attributes:
        folder: Full name of a folder.
        put: Function that writes bytes at a name below the folder, and returns the location.
        remove: Function that takes away the bytes at a location.
    """

    source: ImageSource
    folder: str
    put: Callable[[str, bytes], str]
    remove: Callable[[str], None]


def local_world(folder: Path) -> World:
    clock = iter(range(1_700_000_000, 1_800_000_000))

    def put(name: str, data: bytes) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        moment = next(clock)
        os.utime(path, (moment, moment))
        return str(path)

    return World(LOCAL_DISK, str(folder), put, lambda location: Path(location).unlink())


def memory_world() -> World:
    clock = iter(range(1, 1_000_000))

    def put(name: str, data: bytes) -> str:
        memory.put(f"mem:pool/{name}", data, next(clock))
        return f"mem:pool/{name}"

    return World(memory.MEMORY, "mem:pool", put, lambda location: memory.IMAGES.pop(location) and None)


@pytest.fixture(params=["local files", "toy"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    install(monkeypatch, tmp_path / "site", "[alloop.sources]\nmem = toys.memory:MEMORY")
    memory.IMAGES.clear()
    yield local_world(tmp_path / "pool") if request.param == "local files" else memory_world()
    memory.IMAGES.clear()


def png(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), color, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def expand(world: World, *names: str) -> list[str]:
    return list(world.source.expand(names, Skipped()))


def test_it_is_an_image_source(world: World):
    assert isinstance(world.source, ImageSource)


def test_a_folder_leads_to_all_images_below_it_in_an_order_that_stays(world: World):
    placed = [world.put(name, png(1)) for name in ("b.png", "cats/a.png", "cats/z.png")]

    found = expand(world, world.folder)

    assert sorted(found) == sorted(placed)
    assert expand(world, world.folder) == found


def test_a_location_leads_to_itself_and_comes_once(world: World):
    location = world.put("cats/a.png", png(1))

    assert expand(world, location) == [location]
    assert expand(world, location, world.folder, location) == [location]


def test_a_name_that_leads_to_nothing_is_refused_before_anything_is_listed(world: World):
    with pytest.raises(PoolError):
        world.source.expand([f"{world.folder}/nothing.png"], Skipped())


def test_a_location_stays_what_it_is_relative_to_any_folder(world: World, tmp_path: Path):
    location = world.put("cats/a.png", png(1))

    assert world.source.full(location, str(tmp_path / "elsewhere")) == location
    assert world.source.top(location) == location
    assert world.source.find(location, tmp_path / "elsewhere") == location


def test_a_table_that_names_no_image_finds_none(world: World, tmp_path: Path):
    assert world.source.find(f"{world.folder}/gone.png", tmp_path) is None


def test_folder_and_name_are_parts_of_the_location(world: World):
    location = world.put("cats/a.png", png(1))

    assert name_of(location) == "a.png"
    assert name_of(folder_of(location)) == "cats"
    assert folder_of(folder_of(location)) == world.folder


def test_bytes_come_back_as_they_were_put(world: World):
    location = world.put("a.png", png(1))

    with world.source.open(location) as file:
        assert file.read() == png(1)
    assert world.source.fetch(location, 10**6).data == png(1)


def test_more_bytes_than_were_asked_for_are_not_read(world: World):
    location = world.put("a.png", png(1))

    found = world.source.fetch(location, 10)

    assert (found.data, found.reason, found.size) == (None, "", len(png(1)))


def test_a_stamp_stays_while_the_bytes_stay_and_changes_with_them(world: World):
    location = world.put("a.png", png(1))
    stamp = world.source.stamp(location)
    assert stamp is not None
    assert stamp.is_file
    assert stamp.size == len(png(1))
    assert world.source.stamp(location) == stamp
    found = world.source.fetch(location, 10**6)
    assert (found.size, found.mtime_ns) == (stamp.size, stamp.mtime_ns)

    world.put("a.png", png(2))

    changed = world.source.stamp(location)
    assert changed is not None
    assert (changed.size, changed.mtime_ns) != (stamp.size, stamp.mtime_ns)


def test_an_image_that_is_gone_is_said_to_be_gone(world: World):
    location, other = world.put("a.png", png(1)), world.put("b.png", png(2))

    world.remove(location)

    assert world.source.stamp(location) is None
    assert not world.source.is_there(location)
    assert world.source.is_there(other)
    assert world.source.is_there(world.folder)
    with pytest.raises(FileNotFoundError):
        world.source.open(location)
    assert "does not exist" in world.source.fetch(location, 10**6).reason


def test_images_are_described_alike_wherever_they_lie(world: World, tmp_path: Path):
    location, bad = world.put("a.png", png(7)), world.put("b.png", b"no picture")
    (tmp_path / "same.png").write_bytes(png(7))

    found, refused = inspect_file(location, 10**6), inspect_file(bad, 10**6)

    assert isinstance(found, ImageFile)
    same = inspect_file(str(tmp_path / "same.png"), 10**6)
    assert isinstance(same, ImageFile)
    assert dataclasses.replace(found, path="", mtime_ns=0) == dataclasses.replace(same, path="", mtime_ns=0)
    assert isinstance(refused, UnreadableFile)
    assert "not an image" in refused.reason


def test_a_local_file_holds_the_same_bytes(world: World):
    location = world.put("a.png", png(1))

    file = world.source.local_file(location)

    assert file is None or file.read_bytes() == png(1)


def test_a_source_that_cannot_tell_says_that_it_is_unreachable(monkeypatch):
    monkeypatch.setattr(memory, "OFFLINE", ["no network"])

    for call in (memory.MEMORY.stamp, memory.MEMORY.is_there, memory.MEMORY.open):
        with pytest.raises(SourceUnreachable):
            call("mem:pool/a.png")
