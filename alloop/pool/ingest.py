"""Inspection of images: read each one whole, and describe it or give the reason why it cannot be used.

Knows nothing of the database; the caller decides which images are new. Does not import torch, so that `pool add` starts
fast.
"""

import contextlib
import hashlib
import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from alloop.errors import PoolError
from alloop.pool import pixels
from alloop.pool.hashing import fingerprint
from alloop.pool.sources import Fetched, find_source
from alloop.records import ImageFile, UnreadableFile

_CHUNK = 16  # number of files that a process gets at once
_AHEAD = 4  # largest number of chunks per process that are read ahead of the caller


def inspect_file(location: str, max_pixels: int, may_be_cut: bool = False) -> ImageFile | UnreadableFile:
    """Read an image whole, decode all of its first frame, and describe it. Never raise an error for a bad image.

    Args:
        location: Location of the image, as `expand` gives it.
        max_pixels: Width times height above which an image is refused, before it is decoded.
        may_be_cut: True to accept incomplete files.

    Returns:
        Width and height after EXIF orientation, the SHA-256 of the bytes, the perceptual fingerprint at the image's own
        depth; or the reason in words why the image cannot be used.
    """
    # Pixels of 4 channels with 32 bits, and room for metadata. A larger file is a video or a disk image.
    most = max_pixels * 16 + 2**26
    found, sha256 = Fetched(0, 0), None
    try:
        found = find_source(location).fetch(location, most)
        if found.data is None:
            reason = found.reason or f"too large: {found.size} bytes, more than any image of {max_pixels} pixels has"
            return UnreadableFile(location, found.size, found.mtime_ns, reason)
        sha256 = hashlib.sha256(found.data).hexdigest()
        seen = pixels.look(found.data, max_pixels, may_be_cut=may_be_cut)
        phash = fingerprint(seen.image)
    except pixels.UnreadableImage as error:
        return UnreadableFile(location, found.size, found.mtime_ns, str(error), sha256)
    except MemoryError:
        return UnreadableFile(location, found.size, found.mtime_ns, "too large for this machine's memory", sha256)
    width, height = seen.image.size
    return ImageFile(
        location, sha256, found.size, found.mtime_ns, width, height, seen.format, seen.mode, phash, depth=seen.depth
    )


def inspect_files(
    locations: Iterable[str], max_pixels: int, workers: int, may_be_cut: bool = False
) -> Iterator[ImageFile | UnreadableFile]:
    """Run `inspect_file` on all locations, in order, with `workers` processes; with 0 or 1 in this process.

    Locations are read lazily, a bounded number ahead of the caller. Closing the iterator, or Ctrl-C, drops work that
    has not started and ends all processes.

    Raises:
        PoolError: A process was killed, most likely because memory ran out.
    """
    if workers <= 1:
        yield from (inspect_file(location, max_pixels, may_be_cut) for location in locations)
        return
    remaining = iter(locations)
    chunks = iter(lambda: list(itertools.islice(remaining, _CHUNK)), [])
    first = next(chunks, [])
    if len(first) < _CHUNK:  # starting processes would take longer than the work
        yield from (inspect_file(location, max_pixels, may_be_cut) for location in first)
        return
    yield from _inspect_chunks(itertools.chain([first], chunks), max_pixels, workers, may_be_cut)


def _inspect_chunks(
    chunks: Iterator[list[str]], max_pixels: int, workers: int, may_be_cut: bool
) -> Iterator[ImageFile | UnreadableFile]:
    # Processes instead of threads, because Pillow's limits and warnings are global, and hashing holds the GIL.
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


def _inspect_chunk(locations: list[str], max_pixels: int, may_be_cut: bool) -> list[ImageFile | UnreadableFile]:
    return [inspect_file(location, max_pixels, may_be_cut) for location in locations]


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C until started processes ignore it; this process receives it at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_interrupts() -> None:
    # Ctrl-C reaches all processes of the terminal; only the first one reacts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
