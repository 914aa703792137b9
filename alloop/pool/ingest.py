"""Paths in words → image files: walk folders and globs, read each file whole, say what it is or why it cannot be used.

Knows nothing of the database; the caller decides what is new. Imports no torch, so that adding to the pool starts fast.
"""

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import multiprocessing
import os
import re
import signal
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from alloop.errors import PoolError
from alloop.pool import pixels
from alloop.pool.hashing import fingerprint
from alloop.pool.left_out import Reach, is_hidden, is_left_out, is_noise
from alloop.records import ImageFile, UnreadableFile

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
_CHUNK = 16  # files a process is given at once
_AHEAD = 4  # chunks per process that may be done or under way before the caller has asked for them


@dataclasses.dataclass
class Skipped:
    """What `expand` passed over, counted while it walks.

    Attributes:
        not_images: Files in walked folders and among a glob's matches, by extension in lower case.
        names: Number of hidden files and folders, and of those that systems, network drives or alloop made, by name. In
            a walk a folder counts as one; of a glob each match counts.
        special: Pipes, sockets and devices.
    """

    not_images: Counter[str] = dataclasses.field(default_factory=Counter)
    names: Counter[str] = dataclasses.field(default_factory=Counter)
    special: int = 0

    @property
    def hidden(self) -> int:
        """Number of files and folders in `names`."""
        return self.names.total()


def expand(paths: Sequence[str], skipped: Skipped | None = None) -> Iterator[Path]:
    """Every file that the paths name, each once, as absolute paths.

    A file is taken as it is, a folder is walked (links to folders too, each folder once, so loops end), a glob
    (`**` means any depth) is matched and its matches treated alike. A path that exists is never read as a glob. The
    order depends on the names only. A folder that cannot be listed is itself returned: inspecting it gives the reason.
    Thumbnails, wastebaskets and alloop's own folders are left out (`alloop.pool.left_out`), except where one is named.

    Args:
        paths: Files, folders or globs; `~` is the home folder.
        skipped: Counts what a walk leaves out; complete when the iterator is exhausted.

    Raises:
        PoolError: A path or glob matches nothing; raised before anything is walked.
    """
    counted = skipped if skipped is not None else Skipped()
    return _expand([_match(path, counted) for path in paths], counted)


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


def reach_of(path: str) -> Reach:
    """Return the reach of a folder or glob. A glob's root is the last folder before its first wildcard."""
    absolute = full_path(path, os.getcwd())  # noqa: PTH109
    if os.path.lexists(absolute):
        return Reach(Path(absolute))
    parts = [spelled_out(part) for part in Path(absolute).parts]
    n_first = next((n for n, part in enumerate(parts) if part is None), len(parts) - 1)
    named = [part for part in parts if part is not None]
    return Reach(Path(*named[:n_first]), named[n_first:])


def spelled_out(part: str) -> str | None:
    """Return the only name that a part of a glob matches; None if the part has a wildcard."""
    name = re.sub(r"\[([*?[])\]", r"\1", part)
    return name if glob.escape(name) == part else None


def _match(path: str, skipped: Skipped) -> tuple[list[Path], bool]:
    """What a path names, and whether it was a glob."""
    absolute = full_path(path, os.getcwd())  # noqa: PTH109
    if path and os.path.lexists(absolute):
        return [Path(absolute)], False
    matches = glob.glob(absolute, recursive=True) if path else []  # noqa: PTH207 - pathlib's does not skip hidden files
    if not matches:
        raise PoolError(
            f"No file, folder or glob matches {printable(path)!r}.",
            "Check the path; put globs in quotes so that the shell leaves them alone.",
        )
    return list(_reached(map(Path, sorted(matches, key=os.fsencode)), reach_of(path), skipped)), True


def _reached(matches: Iterable[Path], reach: Reach, skipped: Skipped) -> Iterator[Path]:
    for match in matches:
        stop = reach.stop(match, is_folder=match.is_dir())
        if stop is None:
            yield match
        else:
            skipped.names[stop] += 1


def _expand(found: Sequence[tuple[list[Path], bool]], skipped: Skipped) -> Iterator[Path]:
    # One folder alone names no file twice, and a pool of a million needs no memory of their names.
    may_repeat = sum(len(matches) for matches, _ in found) > 1
    folders: set[tuple[int, int]] = set()
    seen: set[str] = set()
    for matches, is_glob in found:
        for file in itertools.chain.from_iterable(_files(match, is_glob, folders, skipped) for match in matches):
            if may_repeat:
                if str(file) in seen:
                    continue
                seen.add(str(file))
            yield file


def _files(path: Path, is_glob: bool, folders: set[tuple[int, int]], skipped: Skipped) -> Iterator[Path]:
    if path.is_dir():
        yield from _walk(path, folders, skipped)
    elif not (is_glob and _is_not_image(path.name, skipped)):
        yield path


def _walk(top: Path, folders: set[tuple[int, int]], skipped: Skipped) -> Iterator[Path]:
    """Files below a folder, depth first, in the byte order of their names; a folder that cannot be listed as itself."""
    stack = [(top, True)]
    while stack:
        path, is_folder = stack.pop()
        if not is_folder:
            yield path
            continue
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in folders:
                continue
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name), reverse=True)
        except OSError:
            yield path
            continue
        folders.add((status.st_dev, status.st_ino))
        stack.extend((Path(entry.path), _is_folder(entry)) for entry in entries if _is_wanted(entry, skipped))


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
        mode = entry.stat().st_mode
    except OSError:  # a broken link, or a loop of links: inspecting it gives the reason
        return True
    if not stat.S_ISREG(mode):
        skipped.special += 1
        return False
    return not _is_not_image(entry.name, skipped)


def _is_not_image(name: str, skipped: Skipped) -> bool:
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a name, not a path
    if extension not in _NOT_IMAGES:
        return False
    skipped.not_images[extension] += 1
    return True


def inspect_file(path: Path, max_pixels: int, may_be_cut: bool = False) -> ImageFile | UnreadableFile:
    """Read one file whole, decode all of its first frame, and describe it. Never raises for a bad file.

    Args:
        path: An absolute path, as `expand` gives it.
        max_pixels: Width times height above which an image is refused, before it is decoded.
        may_be_cut: Accept files that end too early.

    Returns:
        Width and height after EXIF orientation, the SHA-256 of the bytes, the perceptual fingerprint at the image's own
        depth; or the reason in words why the file cannot be used.
    """
    size, mtime_ns, sha256 = 0, 0, None
    try:
        status = path.stat()
        size, mtime_ns = status.st_size, status.st_mtime_ns
        _check_name(path)
        data = _read(path, status, max_pixels)
        sha256 = hashlib.sha256(data).hexdigest()
        found = pixels.look(data, max_pixels, may_be_cut=may_be_cut)
        phash = fingerprint(found.image)
    except pixels.UnreadableImage as error:
        return UnreadableFile(printable(str(path)), size, mtime_ns, str(error), sha256)
    except (OSError, ValueError) as error:
        return UnreadableFile(printable(str(path)), size, mtime_ns, _explain(error), sha256)
    except MemoryError:
        return UnreadableFile(printable(str(path)), size, mtime_ns, "too large for this machine's memory", sha256)
    width, height = found.image.size
    return ImageFile(
        str(path), sha256, size, mtime_ns, width, height, found.format, found.mode, phash, depth=found.depth
    )


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise pixels.UnreadableImage("its name is not valid UTF-8; rename it") from error


def _read(path: Path, status: os.stat_result, max_pixels: int) -> bytes:
    """All bytes of a regular file that did not change meanwhile."""
    if stat.S_ISDIR(status.st_mode):
        os.scandir(path).close()  # a walk returns a folder only where this fails, and the failure is the reason
        raise pixels.UnreadableImage("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise pixels.UnreadableImage("not a regular file but a pipe, socket or device")
    # Pixels of the widest kind, 4 channels of 32 bits, and room for metadata: beyond it lies a video or a disk image.
    if status.st_size > max_pixels * 16 + 2**26:
        raise pixels.UnreadableImage(
            f"too large: {status.st_size} bytes, more than any image of {max_pixels} pixels has"
        )
    with path.open("rb") as file:
        data = file.read()
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns) or len(data) != after.st_size:
        raise pixels.UnreadableImage("it changed while it was read; add it again when it is complete")
    return data


def _explain(error: OSError | ValueError) -> str:
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, FileNotFoundError):
        return "it does not exist (any more), or is a link that leads nowhere"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return f"not a usable path: {error}"


def inspect_files(
    paths: Iterable[Path], max_pixels: int, workers: int, may_be_cut: bool = False
) -> Iterator[ImageFile | UnreadableFile]:
    """`inspect_file` of every path, in order, by `workers` processes; 0 or 1 works here, without any.

    Paths are taken lazily, a bounded number ahead of what has been asked for. Closing the iterator, or Ctrl-C, drops
    the work not begun and leaves no process behind.

    Raises:
        PoolError: A process was killed, most likely for want of memory.
    """
    if workers <= 1:
        yield from (inspect_file(path, max_pixels, may_be_cut) for path in paths)
        return
    remaining = iter(paths)
    chunks = iter(lambda: list(itertools.islice(remaining, _CHUNK)), [])
    first = next(chunks, [])
    if len(first) < _CHUNK:  # starting processes would take longer
        yield from (inspect_file(path, max_pixels, may_be_cut) for path in first)
        return
    yield from _inspect_chunks(itertools.chain([first], chunks), max_pixels, workers, may_be_cut)


def _inspect_chunks(
    chunks: Iterator[list[Path]], max_pixels: int, workers: int, may_be_cut: bool
) -> Iterator[ImageFile | UnreadableFile]:
    # Processes rather than threads: Pillow's limits and warnings are global, and hashing holds the interpreter's lock.
    # Spawned, because forking a process that has threads (a progress bar's, torch's) can deadlock.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)
    pending: deque[Future[list[ImageFile | UnreadableFile]]] = deque()
    try:
        for chunk in chunks:
            with _interrupts_held():  # the first one starts the processes
                pending.append(executor.submit(_inspect_chunk, chunk, max_pixels, may_be_cut))
            if len(pending) >= workers * _AHEAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise PoolError(
            f"A process that reads images was killed while {workers} were at work; most likely memory ran out.",
            "Run the command again with fewer workers, or lower [pool] max_pixels. Images added so far are kept.",
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _inspect_chunk(paths: list[Path], max_pixels: int, may_be_cut: bool) -> list[ImageFile | UnreadableFile]:
    return [inspect_file(path, max_pixels, may_be_cut) for path in paths]


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started meanwhile do not hear of Ctrl-C before they ignore it; this one hears of it at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_interrupts() -> None:
    # Ctrl-C reaches every process of the terminal; only the first one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
