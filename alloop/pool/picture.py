"""Images of the pool with the pixels that both people and the model get. Knows nothing of torch."""

import contextlib
import hashlib
import io
from collections.abc import Iterator
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
    data = read_verified(image)
    with _named(image):
        return pixels.decode(data, depth=image.depth, may_be_cut=image.is_admitted)[0]


@final
class Photo:
    """An image of the pool, read once. It is decoded when pixels are needed, once for all who need the same resolution.

    Args:
        image: The image.
        decoded: Its pixels at a resolution at which they are there already.

    Raises:
        PoolError: As `picture_of`.
    """

    def __init__(self, image: ImageRef, *decoded: pixels.Reduced) -> None:
        self._image, self._data = image, read_verified(image)
        self._decoded = list(decoded)

    def enough(self, needed: pixels.Needed) -> tuple[Image.Image, pixels.Box]:
        """Return the upright RGB image at a resolution that is enough for resizing it, and the part to be resized.

        `needed` returns the width and height to which an image of a width and height will be resized. The pixels depend
        on the image and on `needed` only, not on what others needed before.

        Raises:
            PoolError: The bytes cannot be decoded.
        """
        found = next((decoded for decoded in self._decoded if decoded.suits(needed)), None)
        if found is None:
            with _named(self._image):
                depth, may_be_cut = self._image.depth, self._image.is_admitted
                found = pixels.decode_enough(self._data, needed, depth, may_be_cut=may_be_cut)
            self._decoded.append(found)
        return found.image, found.shown


@contextlib.contextmanager
def _named(image: ImageRef) -> Iterator[None]:
    """Turn an error of decoding into a PoolError that names the image."""
    try:
        yield
    except pixels.UnreadableImage as error:
        raise PoolError(
            f"{image.path} cannot be decoded: {error}.", "Replace the file, or run `alloop pool check`."
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
