"""A common depth for images that are not in a database: labeled folders and tables, and strange images."""

import dataclasses
from collections.abc import Sequence

from alloop.errors import PoolError
from alloop.pool import pixels
from alloop.pool.sources import read_bytes
from alloop.records import ImageRef


def with_own_depth(images: Sequence[ImageRef]) -> tuple[ImageRef, ...]:
    """Return the images, each with its own depth. Unreadable images stay as they are; decoding reports the reason."""
    return tuple(dataclasses.replace(image, depth=_own_depth(image)) for image in images)


def share_depth(*groups: Sequence[ImageRef]) -> tuple[tuple[ImageRef, ...], ...]:
    """Return the groups of images with the largest depth given to all images that have a depth."""
    depth = max((image.depth for group in groups for image in group if image.depth is not None), default=None)
    return tuple(
        tuple(image if image.depth is None else dataclasses.replace(image, depth=depth) for image in group)
        for group in groups
    )


def _own_depth(image: ImageRef) -> int | None:
    try:
        data = read_bytes(image.path)
        return pixels.look(data, may_be_cut=image.is_admitted).depth if pixels.may_be_deep(data) else None
    except (PoolError, pixels.UnreadableImage):
        return None
