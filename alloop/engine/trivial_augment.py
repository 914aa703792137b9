"""TrivialAugment: one random change of colors or geometry for each view, at a random strength.

torchvision's `TrivialAugmentWide` draws from the process-wide generator, so its views would depend on the order. The
same changes are written here as a table over torchvision's functions, and a test compares them on equal draws.

Source: Müller & Hutter, ICCV 2021 (arXiv 2103.10158), "Wide".
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from alloop.models.vision import transforms

STRENGTHS = 31  # equal steps from none to the strongest


def _from_to(first: float, last: float) -> tuple[float, ...]:
    return tuple(torch.linspace(first, last, STRENGTHS).tolist())  # float32 as in torchvision, which cuts off decimals


@dataclasses.dataclass(frozen=True)
class Change:
    """A kind of change.

    Attributes:
        apply: Function of an image uint8 [3, H, W] and a strength.
        strengths: Strength at each step.
        is_signed: True if half of the strengths are negative, at random.
    """

    apply: Callable[[Tensor, float], Tensor]
    strengths: tuple[float, ...] = (0.0,) * STRENGTHS
    is_signed: bool = False


def _shear(image: Tensor, across: float, down: float) -> Tensor:
    degrees = [math.degrees(math.atan(across)), math.degrees(math.atan(down))]
    sheared: Tensor = transforms.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])
    return sheared


def _move(image: Tensor, across: float, down: float) -> Tensor:
    places = [int(across), int(down)]
    moved: Tensor = transforms.affine(image, angle=0.0, translate=places, scale=1.0, shear=[0.0, 0.0])
    return moved


CHANGES: tuple[Change, ...] = (
    Change(lambda image, _: image),
    Change(lambda image, s: _shear(image, s, 0.0), _from_to(0.0, 0.99), is_signed=True),
    Change(lambda image, s: _shear(image, 0.0, s), _from_to(0.0, 0.99), is_signed=True),
    Change(lambda image, s: _move(image, s, 0.0), _from_to(0.0, 32.0), is_signed=True),
    Change(lambda image, s: _move(image, 0.0, s), _from_to(0.0, 32.0), is_signed=True),
    Change(transforms.rotate, _from_to(0.0, 135.0), is_signed=True),
    Change(lambda image, s: transforms.adjust_brightness(image, 1.0 + s), _from_to(0.0, 0.99), is_signed=True),
    Change(lambda image, s: transforms.adjust_saturation(image, 1.0 + s), _from_to(0.0, 0.99), is_signed=True),
    Change(lambda image, s: transforms.adjust_contrast(image, 1.0 + s), _from_to(0.0, 0.99), is_signed=True),
    Change(lambda image, s: transforms.adjust_sharpness(image, 1.0 + s), _from_to(0.0, 0.99), is_signed=True),
    Change(lambda image, s: transforms.posterize(image, int(s)), tuple(map(round, _from_to(8.0, 2.0)))),
    Change(lambda image, s: transforms.solarize(image, 255.0 * s), _from_to(1.0, 0.0)),
    Change(lambda image, _: transforms.autocontrast(image)),
    Change(lambda image, _: transforms.equalize(image)),
)


def change(image: UInt8[Tensor, "3 H W"], numbers: Sequence[float]) -> UInt8[Tensor, "3 H W"]:
    """Apply the change that three numbers in [0, 1) choose: its kind, its strength, its sign."""
    kind = CHANGES[int(numbers[0] * len(CHANGES))]
    strength = kind.strengths[int(numbers[1] * STRENGTHS)]
    return kind.apply(image, -strength if kind.is_signed and numbers[2] < 0.5 else strength)
