"""Several trunks as one: their pixels in one row of numbers, their features side by side, at a common scale."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SideBySide(nn.Module):
    """Trunks that look at the same images, each at its own size.

    A batch of images is one tensor, so that loading, halving and gradients work as for one trunk: the pixels
    [3, S_i, S_i] of all trunks, flattened, one after the other, are a row [P], P = Σ 3 S_i².

    Args:
        trunks: Modules that map images [B, 3, S_i, S_i] to features [B, D_i].
        sizes: Side S_i of each trunk's images, in pixels.
    """

    def __init__(self, trunks: Sequence[nn.Module], sizes: Sequence[int]) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)
        self.sizes = tuple(sizes)

    def forward(self, images: Float[Tensor, "B P"]) -> Float[Tensor, "B D"]:
        parts = split_pixels(images, self.sizes)
        return join_blocks([trunk(part) for trunk, part in zip(self.trunks, parts, strict=True)])


def split_pixels(images: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Split rows of pixels [B, P] into each trunk's images [B, 3, S_i, S_i]."""
    parts = torch.split(images, [3 * size * size for size in sizes], dim=1)
    return [part.reshape(-1, 3, size, size) for part, size in zip(parts, sizes, strict=True)]


def join_pixels(images: Sequence[Tensor], *, is_batch: bool) -> Tensor:
    """Join the images of each trunk into a row of pixels [P], or batches of them into rows [B, P]."""
    return torch.cat([part.flatten(start_dim=int(is_batch)) for part in images], dim=-1)


def join_blocks(blocks: Sequence[Float[Tensor, "N _"]]) -> Float[Tensor, "N D"]:
    """Put the features of trunks side by side. Every row of a block gets the same length, and the whole row length 1.

    Lengths of features differ between trunks by factors of up to 100, and the heads share one scale for all features
    (`MultiHead.standardize_by`), so without this one trunk would decide alone. The rule looks at one image only: it
    depends neither on labels nor on other images, and cached blocks stay as each trunk gave them. A row of zeros stays.
    """
    scale = 1 / math.sqrt(len(blocks))
    return torch.cat([nn.functional.normalize(block, dim=1, eps=1e-30) * scale for block in blocks], dim=1)
