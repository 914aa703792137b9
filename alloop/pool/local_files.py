"""The image source of this machine: files and folders. A location is the absolute path of a file.

Bytes of a file name that are not UTF-8 are written as hex escapes in its location.
"""

import functools
import glob
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import final

from alloop.errors import PoolError
from alloop.names import composed, file_spellings
from alloop.pool.left_out import Reach, is_hidden, is_left_out, is_noise
from alloop.pool.sources import Fetched, Skipped, Stamp

# Plainly not images. Anything else found in a folder is tried, and reported when it cannot be read.
_NOT_IMAGES = frozenset(
    {
        ".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xml", ".md", ".rst", ".toml", ".yaml", ".yml", ".ini",
        ".cfg", ".conf", ".db", ".sqlite", ".sqlite3", ".db-wal", ".db-shm", ".log", ".lock", ".html", ".htm", ".css",
        ".js", ".py", ".pyc", ".ipynb", ".sh", ".bat", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar",
        ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".parquet", ".feather", ".npy", ".npz", ".mat",
        ".h5", ".hdf5", ".pkl", ".pickle", ".pt", ".pth", ".onnx", ".safetensors", ".mp4", ".mov", ".avi", ".mkv",
        ".webm", ".mp3", ".wav", ".flac", ".sha256", ".md5",
    }
)  # fmt: skip


@final
class LocalDisk:
    """Files on the disks of this machine."""

    is_lasting = False
    outage = "a disk may not be mounted"

    def full(self, name: str, folder: str) -> str:
        return full_path(name, folder)

    def expand(self, names: Sequence[str], skipped: Skipped) -> Iterator[str]:
        """Return every file that the names lead to.

        A file is taken as it is, a folder is walked (links to folders too, each folder once, so loops end), a glob
        (`**` means any depth) is matched and its matches are treated alike. A path that exists is never read as a glob.
        The order depends on the names only. A folder that cannot be listed is itself returned: fetching it gives the
        reason. Thumbnails, wastebaskets and alloop's own folders are left out (`alloop.pool.left_out`), except where
        one is named. `~` is the home folder.
        """
        return map(_location, _expand([_match(name, skipped) for name in names], skipped))

    def find(self, name: str, folder: Path) -> str | None:
        """Return the file for a name in a table of a folder; None if no file or several files match.

        A file whose name is written as in the table comes first, then the only one in another Unicode form (NFC, NFD).
        """
        found = _find_file(folder, name)
        return None if found is None else _location(str(found))

    def top(self, name: str) -> str:
        if os.path.lexists(name) or not glob.has_magic(name):
            return _location(name)
        folder = Path()
        for part in Path(name).parts:
            if (plain := _spelled_out(part)) is None:
                break
            folder /= plain
        return _location(str(folder))

    def left_out(self, locations: Iterable[str], names: Iterable[str]) -> Mapping[str, str]:
        """Return the files at which every walk from a folder above them stops, with the name at which it stops."""
        reaches = [_reach_of(name) for name in names]

        @functools.cache
        def may_stop(folder: str) -> bool:
            path = Path(folder)
            return any(reach.stop(path, is_folder=True) for reach in reaches if path.is_relative_to(reach.root))

        found = {}
        for location in locations:
            folder, _, name = location.rpartition("/")
            # A path object costs more than everything else here, and nearly all files need none.
            if (is_noise(name) or may_stop(folder)) and (stop := _stop(Path(location), reaches)) is not None:
                found[location] = stop
        return found

    def open(self, location: str) -> BufferedIOBase:
        return _path(location).open("rb")

    def fetch(self, location: str, max_bytes: int) -> Fetched:
        size, mtime_ns, path = 0, 0, _path(location)
        try:
            status = path.stat()
            size, mtime_ns = status.st_size, status.st_mtime_ns
            reason = _refusal(path, status)
            if reason or size > max_bytes:
                return Fetched(size, mtime_ns, reason=reason)
            with path.open("rb") as file:
                data = file.read()
                after = os.fstat(file.fileno())
        except (OSError, ValueError) as error:
            return Fetched(size, mtime_ns, reason=_explain(error, path))
        if (after.st_size, after.st_mtime_ns) != (size, mtime_ns) or len(data) != size:
            reason = "it changed while it was read; add it again when it is complete"
            return Fetched(size, mtime_ns, reason=reason)
        return Fetched(size, mtime_ns, data)

    def stamp(self, location: str) -> Stamp | None:
        """Return size and times of a file; None if it does not exist or cannot be accessed."""
        try:
            status = os.stat(_spelled_on_disk(location))  # noqa: PTH116 - a Path costs more than the call
        except OSError:
            return None
        return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime, stat.S_ISREG(status.st_mode))

    def is_there(self, location: str) -> bool:
        """Return whether a file can be read. On a disk that is not mounted, no file can."""
        return os.access(location, os.R_OK)

    def local_file(self, location: str) -> Path:
        return _path(location)


LOCAL_DISK = LocalDisk()


def full_path(name: str, folder: str) -> str:
    """Return an absolute path or glob. It is relative to `folder`, whose own name is never read as a glob."""
    named = os.path.expanduser(name)  # noqa: PTH111 - a glob is not a path
    plain = os.path.abspath(os.path.join(folder, named))  # noqa: PTH100, PTH118
    if os.path.lexists(plain) or not glob.has_magic(named):
        return plain
    return os.path.abspath(os.path.join(glob.escape(folder), named))  # noqa: PTH100, PTH118


def printable(path: str) -> str:
    """Return the path with bytes that are not UTF-8 as hex escapes, for a terminal, JSON and a database."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _reach_of(absolute: str) -> Reach:
    """Return the reach of a folder or glob. A glob's root is the last folder before its first wildcard."""
    if os.path.lexists(absolute):
        return Reach(Path(absolute))
    parts = [_spelled_out(part) for part in Path(absolute).parts]
    n_first = next((n for n, part in enumerate(parts) if part is None), len(parts) - 1)
    named = [part for part in parts if part is not None]
    return Reach(Path(*named[:n_first]), named[n_first:])


def _spelled_out(part: str) -> str | None:
    """Return the only name that a part of a glob matches; None if the part has a wildcard."""
    name = re.sub(r"\[([*?[])\]", r"\1", part)
    return name if glob.escape(name) == part else None


def _match(path: str, skipped: Skipped) -> tuple[list[Path], bool]:
    """Return the files and folders that a path or glob names, and whether it is a glob."""
    absolute = full_path(_spelled_on_disk(path), os.getcwd())  # noqa: PTH109
    if path and os.path.lexists(absolute):
        return [Path(absolute)], False
    matches = glob.glob(absolute, recursive=True) if path else []  # noqa: PTH207 - pathlib's does not skip hidden files
    if not matches:
        raise PoolError(
            f"No file, folder or glob matches {printable(path)!r}.",
            "Check the path; put globs in quotes so that the shell leaves them alone.",
        )
    return list(_reached(map(Path, sorted(matches, key=os.fsencode)), _reach_of(absolute), skipped)), True


def _reached(matches: Iterable[Path], reach: Reach, skipped: Skipped) -> Iterator[Path]:
    for match in matches:
        stop = reach.stop(match, is_folder=match.is_dir())
        if stop is None:
            yield match
        else:
            skipped.names[stop] += 1


def _expand(found: Sequence[tuple[list[Path], bool]], skipped: Skipped) -> Iterator[str]:
    # One folder alone names no file twice, and a pool of a million needs no memory of their names.
    may_repeat = sum(len(matches) for matches, _ in found) > 1
    folders: set[tuple[int, int]] = set()
    seen: set[str] = set()
    for matches, is_glob in found:
        for file in itertools.chain.from_iterable(_files(match, is_glob, folders, skipped) for match in matches):
            if may_repeat:
                if file in seen:
                    continue
                seen.add(file)
            yield file


def _files(path: Path, is_glob: bool, folders: set[tuple[int, int]], skipped: Skipped) -> Iterator[str]:
    if path.is_dir():
        yield from _walk(str(path), folders, skipped)
    elif not (is_glob and _is_not_image(path.name, skipped)):
        yield str(path)


def _walk(top: str, folders: set[tuple[int, int]], skipped: Skipped) -> Iterator[str]:
    """Files below a folder, depth first, in the byte order of their names; a folder that cannot be listed as itself."""
    stack = [(top, True)]
    while stack:
        path, is_folder = stack.pop()
        if not is_folder:
            yield path
            continue
        try:
            status = os.stat(path)  # noqa: PTH116 - texts all the way, as a walk may meet a million files
            if (status.st_dev, status.st_ino) in folders:
                continue
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name), reverse=True)
        except OSError:
            yield path
            continue
        folders.add((status.st_dev, status.st_ino))
        stack.extend((entry.path, _is_folder(entry)) for entry in entries if _is_wanted(entry, skipped))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_wanted(entry: os.DirEntry[str], skipped: Skipped) -> bool:
    is_folder = _is_folder(entry)
    if is_left_out(Path(entry.path)) if is_folder else is_hidden(entry.name) or is_noise(entry.name):
        skipped.names[entry.name] += 1
        return False
    if is_folder:
        return True
    try:
        is_special = not (
            entry.is_file() or stat.S_ISREG(entry.stat().st_mode)
        )  # the first asks the disk only for links
    except OSError:  # a broken link, or a loop of links: inspecting it gives the reason
        return True
    if is_special:
        skipped.special += 1
        return False
    return not _is_not_image(entry.name, skipped)


def _is_not_image(name: str, skipped: Skipped) -> bool:
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a name, not a path
    if extension not in _NOT_IMAGES:
        return False
    skipped.not_images[extension] += 1
    return True


def _location(path: str) -> str:
    return path if path.isascii() else printable(path)


def _path(location: str) -> Path:
    """Return the path on disk that a location means. Reverse of `printable`."""
    return Path(_spelled_on_disk(location))


def _spelled_on_disk(name: str) -> str:
    if "\\x" not in name or os.path.lexists(name):
        return name
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), name.encode())
    return os.fsdecode(raw) if os.path.lexists(raw) else name


def _stop(file: Path, reaches: Sequence[Reach]) -> str | None:
    """Return the name at which every walk from a folder above stops before the file; None if a walk reaches it."""
    stops = [reach.stop(file) for reach in reaches if file.is_relative_to(reach.root)]
    return stops[0] if stops and None not in stops else None


def _refusal(path: Path, status: os.stat_result) -> str:
    """Return the reason why a path cannot be an image, whatever its bytes are; empty if it can be one."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    if stat.S_ISDIR(status.st_mode):
        os.scandir(path).close()  # a walk returns a folder only where this fails, and the failure is the reason
        return "a folder, not a file"
    return "" if stat.S_ISREG(status.st_mode) else "not a regular file but a pipe, socket or device"


def _explain(error: OSError | ValueError, path: Path) -> str:
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, FileNotFoundError):
        return "a link that leads nowhere" if path.is_symlink() else "it does not exist (any more)"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return f"not a usable path: {error}"


def _find_file(folder: Path, name: str) -> Path | None:
    """Return the file for a name in a table of a folder; None if no file or several files match.

    A file whose name is written as in the table comes first, then the only one in another Unicode form (NFC, NFD).
    """
    for spelled in file_spellings(name):
        if spelled and (folder / spelled).is_file():
            return folder / spelled
    if name.isascii():
        return None
    found = [path for spelled in file_spellings(name) for path in _composed_alike(folder, Path(spelled).parts)]
    files = [path for path in dict.fromkeys(found) if path.is_file()]
    return files[0] if len(files) == 1 else None


def _composed_alike(folder: Path, parts: Sequence[str]) -> list[Path]:
    """Return the paths below a folder whose parts have the same letters in any Unicode form."""
    places = [folder]
    for part in parts:
        places = [entry for place in places for entry in _entries(place, part)]
    return places


def _entries(place: Path, part: str) -> list[Path]:
    if part.isascii():
        return [place / part]
    try:
        return [entry for entry in place.iterdir() if composed(entry.name) == composed(part)]
    except OSError:
        return []
