"""Images outside the pool: files, bytes and pixels in memory, as references that are read like images of the pool.

All become bytes of a file, so `pool/pixels.py` alone says what an image looks like: upright, transparency on white,
wide ranges scaled. A file or bytes have the content hash that they have in the pool. Pixels in memory have a hash of
their own.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from alloop.errors import PoolError
from alloop.pool import pixels
from alloop.pool.local_files import printable
from alloop.pool.sources import LOCAL, fetch_image, scheme_of
from alloop.records import ImageRef

OutsideImage = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8] | Tensor
_FORMS = (
    "give a path, bytes, a Pillow image, an array of uint8 [H, W, 3] or [H, W], or a tensor of uint8 [3, H, W], with "
    "colors in the order red, green, blue"
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """Rules for reading images outside the pool.

    Attributes:
        max_pixels: Width times height above which an image is refused.
        may_be_cut: True to read files that end too early as far as they go.
        depth: Bits at which images with more than 8 bits a channel are read; None: each at its own depth.
    """

    max_pixels: int
    may_be_cut: bool = False
    depth: int | None = None


def outside_ref(image: object, number: int, reading: Reading) -> ImageRef:
    """Return the reference of an image outside the pool. Its pixels are not decoded yet.

    Args:
        image: An `OutsideImage`. A text is a path, or the location of another image source.
        number: Its id in the reference.
        reading: Rules for reading it.

    Raises:
        PoolError: The image cannot be used; the message is the reason.
    """
    name, is_file = f"image {number}", isinstance(image, str | os.PathLike)
    try:
        if isinstance(image, str | os.PathLike):
            name = location_of(os.fspath(image))
            found = fetch_image(name, reading.max_pixels)
            if found.data is None:
                raise pixels.UnreadableImage(found.reason)
            data = found.data
        else:
            data = _encode(image)
        is_deep = pixels.peek(data, reading.max_pixels)
        depth = reading.depth or (_own_depth(data, reading) if is_deep else None)
    except pixels.UnreadableImage as error:
        raise PoolError(str(error)) from error
    except MemoryError as error:
        raise PoolError("too large for this machine's memory") from error
    return ImageRef(
        number,
        hashlib.sha256(data).hexdigest(),
        name,
        depth if is_deep else None,
        is_admitted=reading.may_be_cut,
        data=None if is_file else data,
    )


def open_images(
    numbered: Sequence[tuple[int, ImageRef | OutsideImage]], reading: Reading
) -> tuple[list[ImageRef], tuple[tuple[int, str], ...]]:
    """Return references of images, and the numbers of those that cannot be used, with the reasons."""
    refs, failed = [], []
    for number, image in numbered:
        try:
            refs.append(image if isinstance(image, ImageRef) else outside_ref(image, number, reading))
        except PoolError as error:
            failed.append((number, error.message))
    return refs, tuple(failed)


def refuse_one_image(images: object) -> None:
    """Refuse an image in the place of several.

    Raises:
        TypeError: It is one image.
    """
    is_array = isinstance(images, np.ndarray | Tensor) and images.ndim < 4
    if is_array or isinstance(images, str | bytes | os.PathLike | Image.Image | ImageRef):
        raise TypeError(f"predict takes several images, not one {type(images).__name__}; write [image]")


def location_of(name: str) -> str:
    """Return the location that a name means: the absolute path of a local file, relative to the current folder.

    A wildcard is a part of the name, and so are bytes that are not UTF-8.
    """
    if scheme_of(name) != LOCAL:
        return name
    return printable(os.path.abspath(os.path.expanduser(name)))  # noqa: PTH100, PTH111 (a text that may not be UTF-8)


def _encode(image: object) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return pixels.encode(image)
    if isinstance(image, Tensor):
        is_color = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3
        values = image.detach().cpu().permute(1, 2, 0).numpy() if is_color else None
        kind = f"a tensor of {str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
    elif isinstance(image, np.ndarray):
        is_image = image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
        values, kind = image if is_image else None, f"an array of {image.dtype} {list(image.shape)}"
    else:
        values, kind = None, f"an object of the type {type(image).__name__}"
    if values is None:
        raise pixels.UnreadableImage(f"{kind} is not an image; {_FORMS}")
    if values.size == 0:
        raise pixels.UnreadableImage(f"{kind} has no pixels")
    return pixels.encode_values(values)


def _own_depth(data: bytes, reading: Reading) -> int | None:
    return pixels.look(data, reading.max_pixels, may_be_cut=reading.may_be_cut).depth
