"""Images of the pool with the pixels that both people and the model get. Knows nothing of torch."""

import hashlib
import io

from PIL import Image

from alloop.errors import PoolError
from alloop.pool import pixels
from alloop.pool.sources import read_bytes
from alloop.records import ImageRef


def picture_of(image: ImageRef) -> Image.Image:
    """Decode an image upright, in RGB, at the pool's depth.

    Raises:
        PoolError: The file is missing or unreadable, or it has changed since it was added.
    """
    return decode_bytes(read_verified(image), image.path, image.depth, may_be_cut=image.is_admitted)


def as_png(image: ImageRef) -> bytes:
    """Return an image as PNG, for browsers that would not show it, or would show other pixels than the model gets.

    Raises:
        PoolError: As `picture_of`.
    """
    buffer = io.BytesIO()
    picture_of(image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_bytes(data: bytes, location: str, depth: int | None = None, *, may_be_cut: bool = False) -> Image.Image:
    """Decode an image file's bytes to RGB. The location is used in errors only.

    Raises:
        PoolError: The bytes cannot be decoded.
    """
    try:
        return pixels.decode(data, depth=depth, may_be_cut=may_be_cut)[0]
    except pixels.UnreadableImage as error:
        raise PoolError(
            f"{location} cannot be decoded: {error}.", "Replace the file, or run `alloop pool check`."
        ) from error


def read_verified(image: ImageRef) -> bytes:
    """Read the bytes of an image of the pool and check their hash.

    Raises:
        PoolError: The file is missing or unreadable, or it has changed since it was added.
    """
    data = read_bytes(image.path)
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise PoolError(
            f"{image.path} has changed since it was added (its SHA-256 was {image.sha256[:12]}…).",
            "Run `alloop pool add` on it: the new content is another image, with labels of its own.",
        )
    return data
