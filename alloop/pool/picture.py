"""Images of the pool with the pixels that both people and the model get. Knows nothing of torch."""

import hashlib
import io
from pathlib import Path
from typing import final

from PIL import Image

from alloop.errors import PoolError
from alloop.pool import pixels
from alloop.pool.sources import find_source, read_bytes
from alloop.records import ImageRef


def picture_of(image: ImageRef) -> Image.Image:
    """Decode an image upright, in RGB, at the pool's depth.

    Raises:
        PoolError: The file is missing or unreadable, or it has changed since it was added.
    """
    return decode_bytes(read_verified(image), image.path, image.depth, may_be_cut=image.is_admitted)


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
    if image.data is not None:
        return image.data
    data = read_bytes(image.path)
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise PoolError(
            f"{image.path} has changed since it was added (its SHA-256 was {image.sha256[:12]}…).",
            "Run `alloop pool add` on it: the new content is another image, with labels of its own.",
        )
    return data


@final
class PoolPictures:
    """Images of the pool for labeling back ends."""

    def read(self, image: ImageRef) -> bytes:
        return read_bytes(image.path)

    def as_png(self, image: ImageRef) -> bytes:
        buffer = io.BytesIO()
        picture_of(image).save(buffer, "PNG")
        return buffer.getvalue()

    def local_file(self, image: ImageRef) -> Path | None:
        return find_source(image.path).local_file(image.path)


PICTURES = PoolPictures()
