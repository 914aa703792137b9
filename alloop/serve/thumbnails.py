"""Small pictures of the pool's images, decoded with the pool's limits, and kept in the workspace's cache."""

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from alloop.pool.picture import Photo
from alloop.records import ImageRef

SIDES = (160, 320, 640)  # pixels of the longer side
MOST_BYTES = 512 * 2**20  # of the folder
_CLEAN_EVERY = 500  # new pictures between two looks at the folder's size


class Thumbnails:
    """Thumbnails by the content of the image: a replaced file has another one."""

    def __init__(self, folder: Path, workers: int) -> None:
        """`workers` is the number of pictures that are decoded at once; others wait."""
        self._folder = folder
        self._turns = threading.BoundedSemaphore(workers)
        self._lock = threading.Lock()
        self._new = 0

    def jpeg(self, image: ImageRef, side: int) -> bytes:
        """Return a JPEG file of an image, at most `side` pixels wide and high.

        Raises:
            PoolError: The file is missing, has changed, or is not a picture.
        """
        place = self._folder / image.key[:2] / f"{image.key}-{side}.jpg"
        kept = _read_kept(place)
        if kept is not None:
            return kept
        with self._turns:
            small = _shrink(image, side)
        self._keep(place, small)
        return small

    def _keep(self, place: Path, picture: bytes) -> None:
        temporary = place.with_name(f".{os.getpid()}-{threading.get_ident()}-{place.name}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(picture)  # not flushed to the disk, which would take longer than decoding again
            temporary.replace(place)
        except OSError:  # a full disk, or a workspace that may only be read: decoded again next time
            return
        with self._lock:
            self._new += 1
            is_due = self._new % _CLEAN_EVERY == 0
        if is_due:
            clean(self._folder, MOST_BYTES)


def _read_kept(place: Path) -> bytes | None:
    """Return a kept picture; None if there is none, or if the machine stopped before all of it was on the disk."""
    try:
        picture = place.read_bytes()
    except OSError:
        return None
    return picture if picture.startswith(b"\xff\xd8") and picture.endswith(b"\xff\xd9") else None


def _shrink(image: ImageRef, side: int) -> bytes:
    def small(width: int, height: int) -> tuple[int, int]:
        longer = max(width, height, side)
        return max(1, round(width * side / longer)), max(1, round(height * side / longer))

    def half(width: int, height: int) -> tuple[int, int]:  # a JPEG is then decoded at the size of the thumbnail or more
        across, down = small(width, height)
        return max(1, across // 2), max(1, down // 2)

    picture, shown = Photo(image).enough(half)
    size = small(round(shown[2] - shown[0]), round(shown[3] - shown[1]))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.HAMMING, shown, reducing_gap=2.0).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def clean(folder: Path, most_bytes: int, stat: Callable[[Path], os.stat_result] = Path.stat) -> None:
    """Delete the oldest pictures until the folder has at most four fifths of `most_bytes`, if it has more than that."""
    found = sorted((stat(path).st_mtime, stat(path).st_size, path) for path in folder.glob("*/*.jpg"))
    size = sum(one[1] for one in found)
    if size <= most_bytes:
        return
    for _, bytes_, path in found:
        if size <= 0.8 * most_bytes:
            return
        path.unlink(missing_ok=True)
        size -= bytes_
