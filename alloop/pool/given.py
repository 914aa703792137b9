"""Images that are given as features: rows of an array. There is no file to look at, and nothing that could vanish."""

import hashlib

import numpy as np
import numpy.typing as npt

from alloop.records import ImageFile

_SCHEME = "row:"


def is_given(path: str) -> bool:
    """Whether an image of the pool is a row of an array instead of a file."""
    return path.startswith(_SCHEME)


def given_files(features: npt.NDArray[np.float32], first: int = 0) -> list[ImageFile]:
    """Rows [N, D] as what the pool keeps of an image, numbered from `first`.

    The number is part of what is hashed, so that equal rows are still different images.
    """
    files = []
    for number, row in enumerate(np.ascontiguousarray(features), start=first):
        data = row.tobytes()
        sha256 = hashlib.sha256(f"row {number}\n".encode() + data).hexdigest()
        files.append(ImageFile(f"{_SCHEME}{number}", sha256, len(data), 0, 0, 0, "row", "", sha256[:16]))
    return files
