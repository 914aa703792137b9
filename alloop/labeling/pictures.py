"""The images of the pool as a labeling back end gets them. The pool implements it (`alloop.pool.picture.PICTURES`)."""

from pathlib import Path
from typing import Protocol

from alloop.records import ImageRef


class Pictures(Protocol):
    """Reads images, wherever they lie."""

    def read(self, image: ImageRef) -> bytes:
        """Return the bytes that are at the image's location, which may have changed.

        Raises:
            PoolError: The image is gone or unreadable.
        """
        ...

    def as_png(self, image: ImageRef) -> bytes:
        """Return the image as PNG with the pixels that the model gets, for programs that show it differently.

        Raises:
            PoolError: The image is gone or unreadable, or it has changed since it was added.
        """
        ...

    def local_file(self, image: ImageRef) -> Path | None:
        """Return the file on this machine that holds the image; None if the image is elsewhere."""
        ...
