"""Inspection of images: read each one whole, and describe it or give the reason why it cannot be used.

Knows nothing of the database; the caller decides which images are new. Does not import torch, so that `pool add` starts
fast.
"""

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from alloop.errors import PoolError, WorkerKilled
from alloop.executor import Executor
from alloop.pool import pixels
from alloop.pool.hashing import fingerprint, needed_size
from alloop.pool.picture import Photo
from alloop.pool.sources import Fetched, fetch_image
from alloop.progress import Progress, silent
from alloop.records import ImageFile, ImageRef, UnreadableFile

READING = "reading images"  # label of the progress
_CHUNK = 32  # number of files that a process gets at once: handing over costs as much as recording a file
_AHEAD = 2  # largest number of chunks per process that are read ahead of the caller

View = Callable[[Photo], npt.ArrayLike]  # image → pixels uint8 for a trunk; picklable


def inspect_file(
    location: str, max_pixels: int, may_be_cut: bool = False, view: View | None = None
) -> ImageFile | UnreadableFile:
    """Read an image whole, decode all of its first frame, and describe it. Never raise an error for a bad image.

    Args:
        location: Location of the image, as `expand` gives it.
        max_pixels: Width times height above which an image is refused, before it is decoded.
        may_be_cut: True to accept incomplete files.
        view: Function that makes the pixels for a trunk, from the same bytes and, where their resolution suits, from
            the same decoded image. An image with more than 8 bits a channel gets none: how it looks depends on the
            whole pool.

    Returns:
        Width and height after EXIF orientation, the SHA-256 of the bytes, the perceptual fingerprint at the image's own
        depth; or the reason in words why the image cannot be used.
    """
    found, sha256 = Fetched(0, 0), None
    try:
        found = fetch_image(location, max_pixels)
        if found.data is None:
            return UnreadableFile(location, found.size, found.mtime_ns, found.reason)
        sha256 = hashlib.sha256(found.data).hexdigest()
        seen = pixels.look(found.data, max_pixels, needed_size, may_be_cut=may_be_cut)
        phash = fingerprint(seen.reduced.image, seen.reduced.shown)
        made = None
        if view is not None and seen.depth is None:
            ref = ImageRef(0, sha256, location, is_admitted=may_be_cut, data=found.data)
            made = np.asarray(view(Photo(ref, seen.reduced)))
    except pixels.UnreadableImage as error:
        return UnreadableFile(location, found.size, found.mtime_ns, str(error), sha256)
    except MemoryError:
        return UnreadableFile(location, found.size, found.mtime_ns, "too large for this machine's memory", sha256)
    except (OSError, ValueError) as error:  # one odd image must not end the reading of all others
        return UnreadableFile(location, found.size, found.mtime_ns, f"cannot be read: {error}", sha256)
    width, height = seen.reduced.size
    return ImageFile(
        location, sha256, found.size, found.mtime_ns, width, height, seen.format, seen.mode, phash, seen.depth, made
    )


def inspect_files(
    locations: Iterable[str],
    executor: Executor,
    max_pixels: int,
    workers: int,
    may_be_cut: bool = False,
    view: View | None = None,
) -> Iterator[ImageFile | UnreadableFile]:
    """Run `inspect_file` on all locations, in order, with `workers` processes; with 0 or 1 in this process.

    Locations are read lazily, a bounded number ahead of the caller. Closing the iterator, or Ctrl-C, drops work that
    has not started and ends all processes.

    Raises:
        PoolError: A process was killed, most likely because memory ran out.
    """
    remaining = iter(locations)
    chunks = iter(lambda: list(itertools.islice(remaining, _CHUNK)), [])
    first = next(chunks, [])
    n = workers if len(first) == _CHUNK else 1  # starting processes takes longer than reading a few files
    jobs = (_Chunk(tuple(chunk), max_pixels, may_be_cut, view) for chunk in itertools.chain([first], chunks))
    try:
        with contextlib.closing(executor.run_all(jobs, n, ahead=_AHEAD, in_order=True)) as chunks_read:
            for found in chunks_read:
                yield from found
    except WorkerKilled as error:
        raise PoolError(
            f"A process that reads images was killed while {workers} were at work; most likely memory ran out.",
            "Lower [train] workers or [pool] max_pixels, and run the command again. Images added so far are kept.",
        ) from error


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Job that reads a few files."""

    locations: tuple[str, ...]
    max_pixels: int
    may_be_cut: bool
    view: View | None

    def run(self, progress: Progress = silent) -> list[ImageFile | UnreadableFile]:
        return [inspect_file(location, self.max_pixels, self.may_be_cut, self.view) for location in self.locations]
