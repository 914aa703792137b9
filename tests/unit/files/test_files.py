"""Files and folders that are whole or absent, whatever is in the place where they go."""

import errno
import os
import resource
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from alloop.errors import WorkspaceError
from alloop.files import atomic_folder, atomic_path, is_stream, write_bytes


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """No file may grow beyond 1,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_link_is_followed_and_stays(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real.csv").write_text("old")
    (tmp_path / "labels.csv").symlink_to(tmp_path / "second")
    (tmp_path / "second").symlink_to("disk/real.csv")

    write_bytes(tmp_path / "labels.csv", b"new")

    assert (tmp_path / "labels.csv").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "disk" / "real.csv").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real.csv"]


def test_a_link_to_what_is_not_there_yet_is_followed(tmp_path: Path):
    (tmp_path / "labels.csv").symlink_to(tmp_path / "new" / "real.csv")

    write_bytes(tmp_path / "labels.csv", b"new")

    assert (tmp_path / "labels.csv").is_symlink()
    assert (tmp_path / "new" / "real.csv").read_bytes() == b"new"


def test_a_loop_of_links_is_refused(tmp_path: Path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(WorkspaceError, match=os.strerror(errno.ELOOP)):
        write_bytes(tmp_path / "a", b"new")

    assert (tmp_path / "a").is_symlink()


def test_a_pipe_gets_the_bytes_and_stays(tmp_path: Path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()

    write_bytes(pipe, b"labels")

    reader.join(10)
    assert got == [b"labels"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_device_gets_the_bytes_and_stays(tmp_path: Path):
    nowhere = tmp_path / "null"  # one of our own, in case that it is replaced
    try:
        os.mknod(nowhere, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        nowhere.write_bytes(b"")
    except OSError:
        pytest.skip("making a device is not allowed here")

    write_bytes(nowhere, b"labels")

    assert is_stream(nowhere)
    assert stat.S_ISCHR(nowhere.stat().st_mode)


def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path):
    for name in ("n" * 255, "é" * 127):
        write_bytes(tmp_path / name, b"whole")

        assert (tmp_path / name).read_bytes() == b"whole"


def test_a_file_larger_than_files_may_be_leaves_the_old_one(tmp_path: Path, small_files_only: None):
    write_bytes(tmp_path / "report.html", b"old")

    with pytest.raises(WorkspaceError, match="larger than the largest file allowed here") as caught:
        write_bytes(tmp_path / "report.html", bytes(2000))

    assert "ulimit" in caught.value.hint
    assert (tmp_path / "report.html").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("place", ["folder", "file/below", "n" * 300])
def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path, place: str):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()

    with pytest.raises(WorkspaceError, match="could not be written") as caught:
        write_bytes(tmp_path / place, b"bytes")

    assert caught.value.hint == "Choose another place."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path, is_there: bool):
    place = tmp_path / "tree"
    if is_there:
        place.mkdir()
        before = place.stat().st_ino

    with atomic_folder(place) as folder:
        for name in ("cat", "dog"):
            (folder / name).mkdir()
            (folder / name / "a.png").touch()
        assert not (place / "cat").exists()

    assert sorted(str(path.relative_to(place)) for path in place.rglob("*.png")) == ["cat/a.png", "dog/a.png"]
    assert sorted(path.name for path in place.iterdir()) == ["cat", "dog"]
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
    if is_there:  # it may be a mount point, or where somebody's shell is
        assert place.stat().st_ino == before


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_fails_half_way_leaves_nothing(tmp_path: Path, is_there: bool, small_files_only: None):
    if is_there:
        (tmp_path / "tree").mkdir()

    with (
        pytest.raises(WorkspaceError, match="larger than the largest file allowed"),
        atomic_folder(tmp_path / "tree") as folder,
    ):
        (folder / "a").write_bytes(bytes(500))
        (folder / "b").write_bytes(bytes(2000))

    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == (["tree"] if is_there else [])


def test_a_linked_folder_is_followed(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "tree").symlink_to("disk")

    with atomic_folder(tmp_path / "tree") as folder:
        (folder / "a").touch()

    assert (tmp_path / "tree").is_symlink()
    assert (tmp_path / "disk" / "a").exists()


def test_somebody_who_stopped_reading_is_no_full_disk(tmp_path: Path):
    with pytest.raises(BrokenPipeError), atomic_path(tmp_path / "labels.csv"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert list(tmp_path.iterdir()) == []


def test_a_private_file_is_never_readable_by_others(tmp_path: Path):
    before = os.umask(0)
    try:
        with atomic_path(tmp_path / "secret.json", is_private=True) as temporary:
            temporary.write_text("{}")
            modes = [stat.S_IMODE(temporary.stat().st_mode)]
        modes.append(stat.S_IMODE((tmp_path / "secret.json").stat().st_mode))
    finally:
        os.umask(before)

    assert modes == [0o600, 0o600]
