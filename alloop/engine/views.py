"""Random views of training images: a rectangle of the image, resized to the trunk's side, and perhaps mirrored.

The random numbers are drawn on the CPU from the seed of the epoch and the content of the image. So a view does not
depend on the device, the batch, the order or the number of processes. Pixels on CUDA differ from the CPU's by at most
one level, because the resize there has weights of its own precision.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from alloop.engine.device import full_float32
from alloop.engine.trivial_augment import change
from alloop.models.backbones import RESAMPLING, Backbone, Interpolation, Photo
from alloop.models.vision import transforms, v2

SMALLEST_CROP = 0.5  # smallest share of the area of an image that a view shows
WIDEST = 4 / 3  # largest ratio of the sides of a rectangle
TRIES = 10  # rectangles that are drawn until one lies within the image
MIRROR = 2 * TRIES + 2  # column of the random numbers
LONGEST = 4  # ratio of sides beyond which only the middle of an image is ever shown
PRECISION = 2**15  # of the weights of a resize; halved where a weight reaches 1, as in torchvision's kernel

_Numbers = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Views:
    """Rectangles and mirrorings of N images.

    Attributes:
        boxes: Top, left, height and width in pixels [N, 4].
        mirrored: Which views are mirrored [N].
    """

    boxes: npt.NDArray[np.int64]
    mirrored: npt.NDArray[np.bool_]


def shrink(photo: Photo, look: Backbone) -> UInt8[Tensor, "3 H W"]:
    """Return an image of at most twice the size that views need, of which views are made. Smaller ones stay.

    The decoder of JPEG may reduce a photo before, as for `Backbone.preprocess`.
    """
    image, shown = photo.enough(functools.partial(_size_to_hold, look=look))
    shorter = min(image.size)
    if max(image.size) > LONGEST * shorter:
        image = transforms.center_crop(image, [min(side, LONGEST * shorter) for side in image.size[::-1]])
        shown = (0, 0, *image.size)
    size = _size_to_hold(shown[2] - shown[0], shown[3] - shown[1], look)
    if size != image.size:
        image = image.resize(size, RESAMPLING[look.interpolation], box=shown)
    small: Tensor = transforms.pil_to_tensor(image).contiguous()  # a card copies parts of it in each epoch
    return small


def _size_to_hold(width: float, height: float, look: Backbone) -> tuple[int, int]:
    shorter, longer, limit = min(width, height), max(width, height), 2 * look.image_size
    if shorter <= limit or longer > LONGEST * shorter:
        return math.ceil(width), math.ceil(height)
    long_side = int(limit * longer / shorter)
    return (limit, long_side) if width <= height else (long_side, limit)


def draw_numbers(keys: Sequence[str], seed: int) -> _Numbers:
    """Return numbers in [0, 1) for the view of each image [N, 26], which depend on seed and key only.

    The columns are: areas and ratios of all tries, place from the top and from the left, mirroring, change.
    """
    n = 2 * TRIES + 6
    drawn = b"".join(hashlib.shake_128(f"{seed}/{key}".encode()).digest(4 * n) for key in keys)
    return np.frombuffer(drawn, dtype="<u4").reshape(len(keys), n) / 2**32


def choose_views(sizes: npt.NDArray[np.int64], numbers: _Numbers) -> Views:
    """Return the views of images of these heights and widths [N, 2], by the rule of torchvision's RandomResizedCrop."""
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    area = height * width * (SMALLEST_CROP + (1 - SMALLEST_CROP) * numbers[:, :TRIES])
    ratio = WIDEST ** (2 * numbers[:, TRIES : 2 * TRIES] - 1)
    heights, widths = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    rows, first, any_fits = np.arange(len(sizes)), fits.argmax(axis=1), fits.any(axis=1)
    # If none fits, the middle of the image with the allowed ratio.
    high = np.where(any_fits, heights[rows, first], np.minimum(height, np.rint(width * WIDEST))[:, 0])
    wide = np.where(any_fits, widths[rows, first], np.minimum(width, np.rint(height * WIDEST))[:, 0])
    top, left = (
        np.where(any_fits, np.floor(numbers[:, column] * (room + 1)), room // 2)
        for column, room in ((MIRROR - 2, height[:, 0] - high), (MIRROR - 1, width[:, 0] - wide))
    )
    boxes = np.stack([top, left, high, wide], axis=1).astype(np.int64)
    return Views(boxes, numbers[:, MIRROR] < 0.5)


def make_views(
    images: Sequence[UInt8[Tensor, "3 H W"]],
    numbers: _Numbers,
    look: Backbone,
    device: torch.device,
) -> UInt8[Tensor, "B 3 S S"]:
    """Return views of images on the device; [0, 3, S, S] of none."""
    if not images:
        return torch.empty(0, 3, look.image_size, look.image_size, dtype=torch.uint8, device=device)
    views = choose_views(np.array([image.shape[-2:] for image in images]), numbers)
    crops = [
        image[:, top : top + height, left : left + width]
        for image, (top, left, height, width) in zip(images, views.boxes.tolist(), strict=True)
    ]
    resize = resize_together if device.type == "cuda" else resize_each
    resized = resize(crops, look.image_size, look.interpolation, device)
    mirrored = torch.from_numpy(views.mirrored).to(device, non_blocking=True)
    return torch.where(mirrored[:, None, None, None], resized.flip(3), resized)


def change_views(views: UInt8[Tensor, "B 3 S S"], numbers: _Numbers) -> UInt8[Tensor, "B 3 S S"]:
    """Change each view by one random operation of `trivial_augment`."""
    rows = numbers[:, MIRROR + 1 :].tolist()
    return torch.stack([change(view, row) for view, row in zip(views, rows, strict=True)]) if rows else views


def resize_each(
    images: Sequence[UInt8[Tensor, "3 H W"]], side: int, interpolation: Interpolation, device: torch.device
) -> UInt8[Tensor, "B 3 S S"]:
    """Resize images to squares one by one, with torchvision's kernel for uint8 on the CPU."""
    mode, antialias = v2.InterpolationMode(interpolation), interpolation != "nearest"
    resized = [transforms.resize(image, [side, side], interpolation=mode, antialias=antialias) for image in images]
    return torch.stack(resized).to(device)


def resize_together(
    images: Sequence[UInt8[Tensor, "3 H W"]], side: int, interpolation: Interpolation, device: torch.device
) -> UInt8[Tensor, "B 3 S S"]:
    """Resize images of any sizes to squares by two products of matrices: first along rows, then along columns.

    The weights are multiples of 2**-15 or 2**-14 and the pixels are whole numbers, so that float32 holds every sum
    exactly, and the result depends neither on the order of summation nor on the batch. As in torchvision, values
    between the steps are rounded to whole levels.
    """
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = sizes.amax(dim=0).tolist()
    rows = torch.zeros(len(images), height, 3, width, dtype=torch.uint8, device=device)
    for row, image in zip(rows, images, strict=True):
        row[: image.shape[1], :, : image.shape[2]].copy_(image.permute(1, 0, 2), non_blocking=True)
    heights, widths = sizes.to(device, non_blocking=True).float().unbind(dim=1)
    with torch.autocast(device.type, enabled=False), full_float32():
        across = weights_along(widths, width, side, interpolation).mT
        flat = _level(torch.bmm(rows.float().flatten(1, 2), across)).reshape(len(images), height, 3 * side)
        squares = _level(torch.bmm(weights_along(heights, height, side, interpolation), flat))
    return squares.to(torch.uint8).reshape(-1, side, 3, side).permute(0, 2, 1, 3)


def weights_along(
    sizes: Float[Tensor, "B"], length: int, side: int, interpolation: Interpolation
) -> Float[Tensor, "B S L"]:
    """Return the weights of `length` pixels, of which an image has the first ones, in each of S resized pixels.

    Source: the antialiased resize of Pillow and PyTorch, whose bicubic filter has a = -0.5.
    """
    scale = (sizes.double() / side)[:, None, None]
    place = torch.arange(side, device=sizes.device)[:, None]
    pixel = torch.arange(length, device=sizes.device, dtype=torch.float32)
    if interpolation == "nearest":
        return (pixel == (scale * place).floor()).float()
    # A center lies up to thousands of pixels from 0: as whole pixels and a fraction, float32 holds it as float64 would.
    center = scale * (place + 0.5) - 0.5
    whole, stretch = center.floor(), scale.clamp_min(1).float()
    distance = (pixel - whole.float()).sub_((center - whole).float()).div_(stretch).abs_()
    weights = distance.neg_().add_(1).clamp_min_(0) if interpolation == "bilinear" else _bicubic(distance)
    weights.mul_(pixel < sizes[:, None, None])
    total = weights.sum(dim=-1, keepdim=True)
    peak = (weights.amax(dim=-1, keepdim=True) / total).amax(dim=1, keepdim=True)
    precision = torch.where(peak * PRECISION >= PRECISION - 0.5, 0.5, 1.0) * PRECISION
    return weights.mul_(precision / total).round_().div_(precision)


def _bicubic(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _level(values: Tensor) -> Tensor:
    """Round to whole levels, in place."""
    return values.add_(0.5).floor_().clamp_(0, 255)
