"""Source of images without files: each image is one row of a feature array."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from alloop.errors import PoolError
from alloop.pool.sources import Fetched, Skipped, Stamp
from alloop.records import ImageFile

_SCHEME = "row:"


def given_files(features: npt.NDArray[np.float32], first: int = 0) -> list[ImageFile]:
    """Convert rows [N, D] to image files of the pool, numbered from `first`.

    The number is part of the hash, so that equal rows are different images.
    """
    files = []
    for number, row in enumerate(np.ascontiguousarray(features), start=first):
        data = row.tobytes()
        sha256 = hashlib.sha256(f"row {number}\n".encode() + data).hexdigest()
        files.append(ImageFile(f"{_SCHEME}{number}", sha256, len(data), 0, 0, 0, "row", "", sha256[:16]))
    return files


@final
class GivenRows:
    """Image source of rows, which have features and no pictures."""

    is_lasting = True
    outage = ""

    def full(self, name: str, folder: str) -> str:
        return name

    def expand(self, names: Sequence[str], skipped: Skipped) -> Iterator[str]:
        raise PoolError(f"{names[0]} is a row of features, not an image.", "Name images, or run `alloop simulate`.")

    def find(self, name: str, folder: Path) -> str | None:
        return name

    def top(self, name: str) -> str:
        return name

    def left_out(self, locations: Iterable[str], names: Iterable[str]) -> Mapping[str, str]:
        return {}

    def open(self, location: str) -> BufferedIOBase:
        raise FileNotFoundError(location)

    def fetch(self, location: str, max_bytes: int) -> Fetched:
        return Fetched(0, 0, reason="a row of features, not an image")

    def stamp(self, location: str) -> Stamp:
        return Stamp(0, 0, 0.0, is_file=False)

    def is_there(self, location: str) -> bool:
        return True

    def local_file(self, location: str) -> Path | None:
        return None


GIVEN_ROWS = GivenRows()
