"""Image file → uint8 tensor [3, H, W]; the pixels are those of pool/pixels.py, to the bit.

Pillow alone decodes. torchvision's JPEG decoder would leave CMYK, damage and every other format to Pillow anyway, and
bundles a libjpeg of its own, whose pixels need not be equal.
"""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from alloop.pool.picture import decode_bytes, picture_of
from alloop.pool.sources import read_bytes
from alloop.records import ImageRef


def decode_rgb(location: str) -> UInt8[Tensor, "3 H W"]:
    """Decode an image file of any size, upright, in RGB.

    Raises:
        PoolError: The file is missing, unreadable, truncated or not an image.
    """
    return _to_tensor(decode_bytes(read_bytes(location), location))


def decode_ref(image: ImageRef) -> UInt8[Tensor, "3 H W"]:
    """Decode an image of the pool at the pool's depth, after proving that its bytes are still those that were added.

    Raises:
        PoolError: As `decode_rgb`, or the file has changed since it was added.
    """
    return _to_tensor(picture_of(image))


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
