"""MixUp and CutMix: a batch and its labels are blended with a shuffled copy.

torchvision.transforms.v2 has both, but it draws from the process-wide generator, pairs every image with its neighbor
instead of a random image, and refuses features [B, D]. Therefore both are written here, and tests compare them with
torchvision's on equal draws.

Mix on the device, after normalization and all geometric augmentation, in training only. Inputs are not changed, because
the training accuracy needs the original batch.
"""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.composition import MIXINGS
from alloop.losses.cross_entropy import Targets

Box = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right are excluded


@dataclasses.dataclass(frozen=True, slots=True)
class Mixing:
    """Settings of mixing.

    Attributes:
        kind: Name in `composition.MIXINGS`.
        mixup_alpha, cutmix_alpha: Parameter a > 0 of Beta(a, a), from which λ is drawn.
        probability: Probability that a batch is mixed at all.
        cutmix_share: Share of CutMix among the mixed batches, for a kind that has both.
    """

    kind: str = "none"
    mixup_alpha: float = 0.2
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    cutmix_share: float = 0.5

    def __post_init__(self) -> None:
        if not (self.mixup_alpha > 0 and self.cutmix_alpha > 0):
            raise ValueError(f"a of Beta(a, a) must be above 0, not {self.mixup_alpha:g} and {self.cutmix_alpha:g}")
        if not (0 <= self.probability <= 1 and 0 <= self.cutmix_share <= 1):
            raise ValueError(f"probabilities lie in [0, 1], not {self.probability:g} and {self.cutmix_share:g}")

    @property
    def is_on(self) -> bool:
        """Return whether batches are mixed."""
        return MIXINGS[self.kind].blends or MIXINGS[self.kind].cuts


def mix(
    inputs: Float[Tensor, "B ..."], targets: Targets, n_classes: int, mixing: Mixing, generator: torch.Generator
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B K"]]:
    """Mix a batch; return it with its soft targets. A batch of one image is not changed.

    Args:
        inputs: Images [B, C, H, W], or features [B, D] of a frozen trunk (MixUp only).
        targets: Class positions, or soft targets.
        n_classes: Number of classes K.
        mixing: Settings of mixing.
        generator: Generator on the CPU; the only source of randomness.
    """
    rows = as_soft(targets, n_classes)
    if not mixing.is_on or len(inputs) < 2 or not _happens(mixing.probability, generator):
        return inputs, rows
    rule = MIXINGS[mixing.kind]
    if rule.cuts and (not rule.blends or _happens(mixing.cutmix_share, generator)):
        return cutmix(inputs, rows, draw_share(mixing.cutmix_alpha, generator), generator)
    return mixup(inputs, rows, draw_share(mixing.mixup_alpha, generator), generator)


def mixup(
    inputs: Float[Tensor, "B ..."], targets: Float[Tensor, "B K"], share: float, generator: torch.Generator
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B K"]]:
    """Return λ x_i + (1 - λ) x_j and λ q_i + (1 - λ) q_j, with a random permutation j and one λ for the batch.

    Source: Zhang et al., ICLR 2018, equation 1; for calibration Thulasidasan et al., NeurIPS 2019.
    """
    _check_float(inputs)
    partners = torch.randperm(len(inputs), generator=generator)
    return blend(inputs, partners, share), blend(targets, partners, share)


def cutmix(
    images: Float[Tensor, "B C H W"], targets: Float[Tensor, "B K"], share: float, generator: torch.Generator
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """Replace a rectangle of every image by its partner's; mix targets by the replaced area.

    Args:
        images: Normalized images.
        targets: Soft targets.
        share: Share λ; the rectangle has the relative area 1 - λ before it is clipped at the border.
        generator: Generator of the partners and of the rectangle's center.

    Raises:
        ValueError: The inputs are features.

    Source: Yun et al., ICCV 2019, equations 1 and 2.
    """
    if images.ndim != 4:
        raise ValueError(f"CutMix needs images [B, C, H, W], got {list(images.shape)}")
    _check_float(images)
    partners = torch.randperm(len(images), generator=generator)
    height, width = images.shape[-2:]
    row = int(torch.randint(height, (1,), generator=generator))
    column = int(torch.randint(width, (1,), generator=generator))
    box = rectangle(height, width, share, row, column)
    top, bottom, left, right = box
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return paste(images, partners, box), blend(targets, partners, kept)


def blend(values: Float[Tensor, "B ..."], partners: Tensor, share: float) -> Float[Tensor, "B ..."]:
    """Return λ v + (1 - λ) v[partners]. λ = 1 and λ = 0 give exactly one of both, even if the other is not finite."""
    if share == 1:
        return values
    others = values[partners.to(values.device, non_blocking=True)]
    return others if share == 0 else share * values + (1 - share) * others


def paste(images: Float[Tensor, "B C H W"], partners: Tensor, box: Box) -> Float[Tensor, "B C H W"]:
    """Return a copy of the images whose box shows the partners."""
    top, bottom, left, right = box
    pasted = images.clone()
    partners = partners.to(images.device, non_blocking=True)
    pasted[..., top:bottom, left:right] = images[partners, ..., top:bottom, left:right]
    return pasted


def rectangle(height: int, width: int, share: float, row: int, column: int) -> Box:
    """Return a box of side ratio sqrt(1 - λ) around a center, clipped at the border. λ = 0 gives the whole image."""
    if share == 0:
        return 0, height, 0, width
    ratio = 0.5 * math.sqrt(1 - share)
    half_height, half_width = int(ratio * height), int(ratio * width)
    return (
        max(0, row - half_height),
        min(height, row + half_height),
        max(0, column - half_width),
        min(width, column + half_width),
    )


def draw_share(alpha: float, generator: torch.Generator) -> float:
    """Draw λ ~ Beta(a, a), in [0, 1].

    PyTorch's Beta takes no generator. Source: Jöhnk (1964), by rejection; in logarithms, since U^(1/a) underflows.
    """
    while True:
        uniform = 1 - torch.rand(2, generator=generator, dtype=torch.float64)  # in (0, 1]: its logarithm is finite
        first, second = (uniform.log() / alpha).tolist()
        top = max(first, second)
        log_sum = top + math.log(math.exp(first - top) + math.exp(second - top))
        if log_sum <= 0:
            return math.exp(first - log_sum)


def as_soft(targets: Targets, n_classes: int) -> Float[Tensor, "B K"]:
    """Return targets as rows that sum to 1, float32 or wider."""
    if targets.is_floating_point():
        return targets if targets.dtype == torch.float64 else targets.float()
    return torch.nn.functional.one_hot(targets, n_classes).float()


def _happens(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand(1, generator=generator, dtype=torch.float64) < probability)


def _check_float(inputs: Tensor) -> None:
    if not inputs.is_floating_point():
        raise ValueError(f"mix after normalization: {inputs.dtype} cannot hold a mean of two images")
