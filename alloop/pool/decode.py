"""Image file → uint8 tensor [3, H, W]; the pixels are those of pool/pixels.py, to the bit.

Pillow alone decodes. torchvision's JPEG decoder would leave CMYK, damage and every other format to Pillow anyway, and
bundles a libjpeg of its own, whose pixels need not be equal.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from alloop.errors import PoolError
from alloop.pool import pixels
from alloop.records import ImageRef


def decode_rgb(path: Path) -> UInt8[Tensor, "3 H W"]:
    """Decode an image file of any size, upright, in RGB.

    Raises:
        PoolError: The file is missing, unreadable, truncated or not an image.
    """
    return _decode(_read(path), path)


def decode_ref(image: ImageRef) -> UInt8[Tensor, "3 H W"]:
    """Decode an image of the pool, after proving that its bytes are still the ones that were added.

    Raises:
        PoolError: As `decode_rgb` and `read_verified`.
    """
    return _decode(read_verified(image), Path(image.path))


def read_verified(image: ImageRef) -> bytes:
    """The bytes of an image of the pool. What is stored under a content hash is never computed from other bytes.

    Raises:
        PoolError: The file is missing or unreadable, or it has changed since it was added.
    """
    data = _read(Path(image.path))
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise PoolError(
            f"{image.path} has changed since it was added (its SHA-256 was {image.sha256[:12]}…).",
            "Run `alloop pool add` on it: the new content is another image, with labels of its own.",
        )
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PoolError(f"{path} is not there any more.", "Put it back, or run `alloop pool check`.") from error
    except OSError as error:
        raise PoolError(f"{path} cannot be read: {error.strerror or error}.", "Run `alloop pool check`.") from error


def _decode(data: bytes, path: Path) -> UInt8[Tensor, "3 H W"]:
    try:
        image, _, _ = pixels.decode(data)
    except pixels.UnreadableImage as error:
        raise PoolError(
            f"{path} cannot be decoded: {error}.", "Replace the file, or run `alloop pool check`."
        ) from error
    return _to_tensor(image)


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
