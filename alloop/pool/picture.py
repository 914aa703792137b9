"""An image of the pool as people see it: the very pixels that the model gets. Knows nothing of torch."""

import hashlib
import io
from pathlib import Path

from PIL import Image

from alloop.errors import PoolError
from alloop.pool import pixels
from alloop.records import ImageRef


def picture_of(image: ImageRef) -> Image.Image:
    """The image upright, in RGB, at the pool's depth.

    Raises:
        PoolError: The file is missing or unreadable, or it has changed since it was added.
    """
    return decode_bytes(read_verified(image), Path(image.path), image.depth, may_be_cut=image.is_admitted)


def as_png(image: ImageRef) -> bytes:
    """The same as a PNG, for browsers that would not show it, or not as the model sees it.

    Raises:
        PoolError: As `picture_of`.
    """
    buffer = io.BytesIO()
    picture_of(image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_bytes(data: bytes, path: Path, depth: int | None = None, *, may_be_cut: bool = False) -> Image.Image:
    """An image file's bytes in RGB; the path is for errors.

    Raises:
        PoolError: They cannot be decoded.
    """
    try:
        return pixels.decode(data, depth=depth, may_be_cut=may_be_cut)[0]
    except pixels.UnreadableImage as error:
        raise PoolError(
            f"{path} cannot be decoded: {error}.", "Replace the file, or run `alloop pool check`."
        ) from error


def read_verified(image: ImageRef) -> bytes:
    """The bytes of an image of the pool. What is stored under a content hash is never computed from other bytes.

    Raises:
        PoolError: The file is missing or unreadable, or it has changed since it was added.
    """
    data = read_bytes(Path(image.path))
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise PoolError(
            f"{image.path} has changed since it was added (its SHA-256 was {image.sha256[:12]}…).",
            "Run `alloop pool add` on it: the new content is another image, with labels of its own.",
        )
    return data


def read_bytes(path: Path) -> bytes:
    """All of a file.

    Raises:
        PoolError: It is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PoolError(f"{path} is not there any more.", "Put it back, or run `alloop pool check`.") from error
    except OSError as error:
        raise PoolError(f"{path} cannot be read: {error.strerror or error}.", "Run `alloop pool check`.") from error
