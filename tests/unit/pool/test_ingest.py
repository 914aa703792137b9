"""Folders as people have them: odd names, loops, junk, and files that are not what they say."""

import contextlib
import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alloop.config.load import FILE_NAME
from alloop.engine.executor_local import LocalExecutor
from alloop.errors import PoolError
from alloop.files import OUTPUT_MARK
from alloop.pool import ingest, left_out, sources
from alloop.pool.sources import Skipped
from alloop.records import ImageFile, UnreadableFile

MANY = 178_956_970


def expand(names: list[str], skipped: Skipped | None = None) -> Iterator[Path]:
    return map(Path, sources.expand(names, skipped))


def inspect_file(path: Path, max_pixels: int) -> ImageFile | UnreadableFile:
    return ingest.inspect_file(str(path), max_pixels)


def inspect_files(paths: Iterable[Path], max_pixels: int, workers: int) -> Iterator[ImageFile | UnreadableFile]:
    return ingest.inspect_files(map(str, paths), LocalExecutor(), max_pixels, workers)


def picture(path: Path, size: tuple[int, int] = (20, 10), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG" if path.suffix == ".jpg" else "PNG")
    path.write_bytes(buffer.getvalue())
    return path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def names(found, root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in found]


def refused(path: Path, max_pixels: int = MANY) -> UnreadableFile:
    result = inspect_file(path, max_pixels)
    assert isinstance(result, UnreadableFile)
    return result


def test_a_folder_is_walked_depth_first_in_the_order_of_names(tmp_path):
    for name in ["b.png", "a/z.png", "a/b/c.png", "c", "B.png"]:
        touch(tmp_path / name)

    assert names(expand([str(tmp_path)]), tmp_path) == ["B.png", "a/b/c.png", "a/z.png", "b.png", "c"]


def test_hidden_files_and_what_systems_strew_about_are_left_out_and_counted(tmp_path):
    for name in [".hidden.png", ".git/x.png", "__MACOSX/x.png", "Thumbs.db", ".DS_Store", "a.png"]:
        touch(tmp_path / name)
    skipped = Skipped()

    assert names(expand([str(tmp_path)], skipped), tmp_path) == ["a.png"]
    assert skipped.names.total() == 5


def test_what_is_plainly_no_image_is_counted_and_anything_else_is_tried(tmp_path):
    for name in ["labels.csv", "README.md", "b/notes.TXT", "c/notes.txt", "photo.JPG", "noextension", "odd.xyz"]:
        touch(tmp_path / name)
    skipped = Skipped()

    assert names(expand([str(tmp_path)], skipped), tmp_path) == ["noextension", "odd.xyz", "photo.JPG"]
    assert skipped.not_images == {".csv": 1, ".md": 1, ".txt": 2}


def test_a_file_named_explicitly_is_tried_whatever_its_name(tmp_path):
    files = [touch(tmp_path / "a.txt"), touch(tmp_path / ".hidden.png")]

    assert list(expand([str(file) for file in files])) == files


def test_a_glob_matches_at_any_depth_and_leaves_out_what_is_no_image(tmp_path):
    for name in ["a.png", "x/b.png", "x/y/c.png", "x/y/c.txt", "x/d.jpg"]:
        touch(tmp_path / name)
    skipped = Skipped()

    assert names(expand([f"{tmp_path}/**/*.png"]), tmp_path) == ["a.png", "x/b.png", "x/y/c.png"]
    assert names(expand([f"{tmp_path}/x/*"], skipped), tmp_path) == ["x/b.png", "x/d.jpg", "x/y/c.png"]
    assert skipped.not_images == {".txt": 1}


def test_a_path_with_brackets_that_exists_is_not_a_glob(tmp_path):
    file = touch(tmp_path / "photo[1].png")
    touch(tmp_path / "photo1.png")

    assert list(expand([str(file)])) == [file]


def test_a_file_named_twice_comes_once(tmp_path):
    files = [touch(tmp_path / "x/a.png"), touch(tmp_path / "x/b.png")]

    assert list(expand([str(files[1]), str(tmp_path), f"{tmp_path}/**", str(tmp_path / "x/../x/a.png")])) == files[::-1]


@pytest.mark.parametrize("path", ["nowhere", "*.png", "", "a\0b"])
def test_a_path_that_matches_nothing_is_an_error_before_anything_is_walked(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "a.jpg")

    with pytest.raises(PoolError) as error:
        expand(["a.jpg", path])

    assert repr(path) in error.value.message


def test_relative_paths_and_home_become_absolute(tmp_path, monkeypatch):
    file = touch(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert list(expand(["a.png"])) == list(expand(["~/a.png"])) == [file]


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    touch(tmp_path / "pool/a.png")
    touch(tmp_path / "elsewhere/b.png")
    (tmp_path / "pool/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "pool")
    (tmp_path / "pool/self").symlink_to(".")

    assert names(expand([str(tmp_path / "pool")]), tmp_path) == ["pool/a.png", "pool/link/b.png"]


def test_links_that_lead_nowhere_are_reported_not_dropped(tmp_path):
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")

    found = list(expand([str(tmp_path)]))

    assert names(found, tmp_path) == ["broken.png", "round.png"]
    assert refused(found[0]).reason == "a link that leads nowhere"
    assert "symbolic links" in refused(found[1]).reason


ODD = [
    "émigré.png",
    "照片.png",
    "a\nb.png",
    'it\'s "so".png',
    "#1 100%.png",
    " space .png",
    "-rf.png",
    "a\\b.png",
    "🦊",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_work(name, tmp_path):
    file = picture(tmp_path / name)

    (found,) = expand([str(tmp_path)])
    result = inspect_file(found, MANY)

    assert isinstance(result, ImageFile)
    assert result.path == str(file)


def test_a_name_that_is_not_utf_8_is_refused_in_printable_form(tmp_path):
    picture(tmp_path / "good.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))

    (found,) = expand([str(tmp_path)])
    result = refused(found)

    assert result.path == f"{tmp_path}/caf\\xe9.png"
    assert "rename" in result.reason
    result.path.encode()


def test_pipes_are_left_out_of_a_walk_and_refused_when_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    skipped = Skipped()

    assert list(expand([str(tmp_path)], skipped)) == []
    assert skipped.special == 1
    assert "pipe" in refused(tmp_path / "pipe.png").reason


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path, monkeypatch):
    touch(tmp_path / "locked/a.png")
    touch(tmp_path / "b.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)

    found = list(expand([str(tmp_path)]))

    assert names(found, tmp_path) == ["b.png", "locked"]
    assert refused(found[1]).reason == "permission denied"


def test_a_good_file_is_described(tmp_path):
    path = picture(tmp_path / "a.jpg", (30, 20))

    result = inspect_file(path, MANY)

    assert isinstance(result, ImageFile)
    status = path.stat()
    assert (result.path, result.size, result.mtime_ns) == (str(path), status.st_size, status.st_mtime_ns)
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (result.width, result.height, result.format, result.mode) == (30, 20, "JPEG", "RGB")
    assert len(result.phash) == 112


@pytest.mark.parametrize("error", [OSError("broken data stream"), ValueError("bad transform")])
def test_an_image_that_fails_in_an_unforeseen_way_is_one_unreadable_file(tmp_path, monkeypatch, error):
    path = picture(tmp_path / "a.png")

    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr(ingest, "fingerprint", fail)

    result = inspect_file(path, MANY)

    assert isinstance(result, UnreadableFile)
    assert (result.size, result.reason) == (path.stat().st_size, f"cannot be read: {error}")
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_installed_packages_are_looked_through_once_for_all_names_with_a_colon(monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "list_installed", lambda group: asked.append(group) or ())
    sources._installed.cache_clear()

    schemes = {sources.scheme_of(f"camera {i}: 12:30.png") for i in range(100)}

    assert schemes == {"file"}
    assert asked == ["alloop.sources"]
    sources._installed.cache_clear()


def test_size_and_hash_of_a_turned_photo_are_those_of_what_people_see(tmp_path):
    picture(tmp_path / "upright.png", (300, 200))
    exif = Image.Exif()
    exif[0x0112] = 8  # stored a quarter clockwise, to be turned back
    with Image.open(tmp_path / "upright.png") as image:
        image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)

    upright, turned = (inspect_file(tmp_path / name, MANY) for name in ["upright.png", "turned.png"])

    assert isinstance(turned, ImageFile) and isinstance(upright, ImageFile)
    assert (turned.width, turned.height) == (300, 200)
    assert turned.phash == upright.phash
    assert turned.sha256 != upright.sha256


def test_bad_files_are_refused_with_the_reason_in_words(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    cut = picture(tmp_path / "cut.jpg", (64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "stub.jpg").write_bytes(cut[:10])
    picture(tmp_path / "big.png", (100, 100))

    reasons = {path.name: refused(path, max_pixels=9_999).reason for path in tmp_path.iterdir()}

    assert reasons["empty.jpg"] == "empty file"
    assert reasons["text.jpg"].startswith("not an image")
    assert "truncated" in reasons["cut.jpg"]
    assert "truncated" in reasons["stub.jpg"]
    assert "100 x 100 = 10000 pixels, and [pool] max_pixels is 9999" in reasons["big.png"]


def test_a_bad_file_keeps_size_time_and_hash_so_that_it_is_not_read_again(tmp_path):
    path = touch(tmp_path / "a.jpg")

    result = refused(path)

    assert (result.size, result.mtime_ns) == (1, path.stat().st_mtime_ns)
    assert result.sha256 == hashlib.sha256(b"x").hexdigest()


def test_a_vanished_file_is_refused(tmp_path):
    assert "does not exist" in refused(tmp_path / "gone.jpg").reason


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.EACCES, "permission denied"), (errno.EIO, "cannot be read: Input/output error")]
)
def test_what_the_system_refuses_to_open_is_refused(code, reason, tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png")

    def refuse(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(io, "open", refuse)  # root may open anything, so the permission bits prove nothing

    assert refused(path).reason == reason


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png")
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"more")
    monkeypatch.setattr(Path, "stat", lambda *_args, **_kwargs: before)

    assert "changed while it was read" in refused(path).reason


def test_a_file_far_larger_than_any_image_is_not_read(tmp_path):
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(2**40)  # sparse: a terabyte of nothing

    assert "too large: 1099511627776 bytes" in refused(tmp_path / "disk.img").reason


def mixed_folder(tmp_path: Path, n: int) -> list[Path]:
    paths = [picture(tmp_path / f"{i:03}.png", seed=i) for i in range(n)]
    paths[n // 2].write_bytes(b"broken")
    return paths


def test_processes_give_the_same_results_in_the_same_order(tmp_path):
    paths = mixed_folder(tmp_path, 50)

    alone = list(inspect_files(paths, MANY, workers=0))

    assert [result.path for result in alone] == [str(path) for path in paths]
    assert sum(isinstance(result, UnreadableFile) for result in alone) == 1
    assert list(inspect_files(iter(paths), MANY, workers=2)) == alone


def test_paths_are_taken_only_a_little_ahead_and_closing_ends_the_processes(tmp_path):
    path = picture(tmp_path / "a.png")
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield path

    results = inspect_files(endless(), MANY, workers=2)
    for _ in range(5):
        next(results)
    results.close()

    assert taken <= 2 * 4 * 16
    assert not [thread for thread in threading.enumerate() if "QueueManager" in thread.name]


@pytest.mark.parametrize("moment", ["while the workers start", "while they wait for more"])
def test_ctrl_c_ends_everything_without_a_word_from_the_workers(tmp_path, moment):
    picture(tmp_path / "a.png")
    script = tmp_path / "endless.py"
    script.write_text(
        "import itertools, signal, sys, time\n"
        "from alloop.engine.executor_local import LocalExecutor\n"
        "from alloop.pool.ingest import inspect_files\n"
        "if __name__ == '__main__':\n"
        # A shell's background job ignores Ctrl-C, and so does whatever it starts, such as these tests.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    try:\n"
        f"        {'print(0, flush=True)' if moment == 'while the workers start' else 'pass'}\n"
        "        for result in inspect_files(itertools.repeat(sys.argv[1]), LocalExecutor(), 10**6, workers=2):\n"
        "            time.sleep(0.3)  # until the workers wait for more\n"
        "            print('one', flush=True)\n"
        "            time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "a.png")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        process.stdout.readline()
        time.sleep(0.3)  # starting takes them longer
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _, errors = process.communicate(timeout=30)

    # communicate() returns when the pipes are closed by all who held them, so no worker is left either
    assert (process.returncode, errors) == (130, "")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_no_worker(tmp_path, how):
    picture(tmp_path / "a.png")
    script = tmp_path / "endless.py"
    script.write_text(
        "import itertools, sys, time\n"
        "from alloop.engine.executor_local import LocalExecutor\n"
        "from alloop.pool.ingest import inspect_files\n"
        "if __name__ == '__main__':\n"
        "    for result in inspect_files(itertools.repeat(sys.argv[1]), LocalExecutor(), 10**6, workers=2):\n"
        "        print('one', flush=True)\n"
        "        time.sleep(60)\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "a.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        process.stdout.readline()
        process.send_signal(how)
        try:
            process.communicate(timeout=30)  # returns when all who held the pipe are gone
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_no_paths_are_no_results():
    assert list(inspect_files([], MANY, workers=4)) == []


def test_ingest_hashing_cache_and_local_executor_do_not_import_torch():
    rooms = "alloop.engine.executor_local, alloop.pool.ingest, alloop.pool.hashing, alloop.pool.cache"
    code = f"import sys, {rooms}; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "folder",
    [
        "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "@__thumb", "System Volume Information", "lost+found",
        "#snapshot", "~snapshot", ".thumbnails", ".Trash-1000", ".@__thumb", ".Spotlight-V100", ".ipynb_checkpoints",
    ],
)  # fmt: skip
def test_folders_of_systems_and_network_drives_are_walked_only_when_they_are_named(folder, tmp_path):
    touch(tmp_path / "a.png")
    thumbnail = touch(tmp_path / "trip" / folder / "deep" / "SYNOPHOTO_THUMB_XL.jpg")
    walked, matched = Skipped(), Skipped()

    assert names(expand([str(tmp_path)], walked), tmp_path) == ["a.png"]
    assert names(expand([f"{tmp_path}/**"], matched), tmp_path) == ["a.png"]
    assert walked.names == {folder: 1}
    assert list(expand([str(tmp_path / "trip" / folder)])) == [thumbnail]
    assert list(expand([str(tmp_path / "trip" / folder / "**" / "*.jpg")])) == [thumbnail]
    assert list(expand([str(tmp_path / "*" / folder / "deep" / "*")])) == [thumbnail]
    assert list(expand([str(thumbnail)])) == [thumbnail]


def test_of_a_workspace_among_photos_only_the_photos_are_found(tmp_path):
    touch(tmp_path / "cats/alloop.toml")
    for own in ["cache", "runs/round-0000", "backups", "simulate", "compare", "label-studio/data/media"]:
        touch(tmp_path / "cats" / own / "picture.png")
    touch(tmp_path / "elsewhere/results" / OUTPUT_MARK)
    touch(tmp_path / "elsewhere/results/cells/curves.png")
    for photo in ["cats/photos/1.png", "cats/2.png", "runs/3.png", "cats/photos/compare/4.png"]:
        touch(tmp_path / photo)
    skipped = Skipped()

    found = ["cats/2.png", "cats/photos/1.png", "cats/photos/compare/4.png", "runs/3.png"]
    assert names(expand([str(tmp_path)], skipped), tmp_path) == found
    assert sorted(names(expand([f"{tmp_path}/**/*.png"]), tmp_path)) == found
    assert sorted(skipped.names) == ["backups", "cache", "compare", "label-studio", "results", "runs", "simulate"]
    assert names(expand([str(tmp_path / "cats")]), tmp_path) == found[:3]
    assert names(expand([str(tmp_path / "cats/runs")]), tmp_path) == ["cats/runs/round-0000/picture.png"]
    for place in ["*/*", "elsewhere/*", "cats/[rc]*"]:  # a glob names none of the folders that it matches
        assert set(names(expand([str(tmp_path / place)]), tmp_path)) <= set(found)
    assert names(expand([f"{tmp_path}/*/results"]), tmp_path) == ["elsewhere/results/cells/curves.png"]


def test_the_file_that_makes_a_folder_a_workspace_is_the_one_that_settings_are_read_from():
    assert left_out._WORKSPACE_FILE == FILE_NAME
