"""MC dropout: M random passes as M members.

Features are dropped before the heads, so the trunk runs once and only the cheap last layer repeats.

Source: Gal & Ghahramani, ICML 2016; docs/methods.md section 3.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.models.heads import MultiHead
from alloop.seeds import derive_seed

RATE, PASSES = 0.25, 20


@dataclasses.dataclass(frozen=True, slots=True)
class HeadDropout:
    """Dropout on the features that heads see, in training and in scoring.

    A dropped feature takes its mean over the training images (`MultiHead.center`), which the last layer sees as 0. The
    other features are scaled by 1 / (1 - rate), as usual.

    Attributes:
        rate: Probability that a feature is dropped, in [0, 1).
        passes: Number of passes M in scoring.
        allow_zero: True to accept rate 0, at which all passes agree.

    Raises:
        ValueError: A number is out of range, or the rate is 0 without `allow_zero`.
    """

    rate: float = RATE
    passes: int = PASSES
    allow_zero: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1 or self.passes < 1:
            raise ValueError(f"need a rate in [0, 1) and at least 1 pass, got {self.rate:g} and {self.passes}")
        if self.rate == 0 and not self.allow_zero:
            raise ValueError("dropout at rate 0 repeats one prediction; set a rate above 0")

    def train_step(
        self, heads: MultiHead, features: Float[Tensor, "B D"], generator: torch.Generator
    ) -> Float[Tensor, "H B K"]:
        """Return the logits of all H heads with one mask per image, shared by the heads."""
        return heads(self._dropped(features, heads.center, self.masks(features, generator)))  # type: ignore[no-any-return]

    def passes_of(
        self,
        heads: MultiHead,
        features: Float[Tensor, "B D"],
        *,
        seed: int | None = None,
        image_seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Float[Tensor, "H B K"]]:
        """Yield the raw logits of all H heads pass by pass, so that memory holds only one pass.

        Args:
            heads: Heads on the features' device.
            features: Features of the trunk, computed once.
            seed: Seed of consistent masks: pass m uses one mask for all images, and the same mask in every call with
                this seed, so that a pool scored in parts shares its M networks (joint acquisition needs this).
            image_seeds: Seeds of the images [B], instead of `seed`: every image and pass gets its own mask, which does
                not depend on the rest of the batch.
            generator: Generator, instead of `seed`: every image and pass gets its own mask, drawn in the order of the
                batch.

        Raises:
            ValueError: Not exactly one of the three is given.
        """
        if sum(given is not None for given in (seed, image_seeds, generator)) != 1:
            raise ValueError(
                "MC dropout needs either a seed (consistent masks), or a generator or seeds of images (a mask for each)"
            )
        if seed is not None:
            return self._consistent(heads, features, seed)
        # Pass m uses the m-th draw of an image's own generator. A shared generator is used in the order of the batch.
        own = None if image_seeds is None else [torch.Generator().manual_seed(each) for each in image_seeds]
        return (
            heads(self._dropped(features, heads.center, self.masks(features, generator if own is None else own)))
            for _ in range(self.passes)
        )

    def _consistent(self, heads: MultiHead, features: Tensor, seed: int) -> Iterator[Tensor]:
        # One mask for all images can be applied to the weights instead: K rows rather than B.
        masks = self.fixed_masks(features.shape[1], seed).to(features.device)
        with torch.autocast(features.device.type, enabled=False):
            centered = (features.to(heads.weight.dtype) - heads.center) / heads.scale
            for mask in masks:
                yield torch.einsum("bd,mkd->mbk", centered, heads.weight * mask) + heads.bias.unsqueeze(1)

    def fixed_masks(self, n_features: int, seed: int) -> Float[Tensor, "P D"]:
        """Return the masks of all passes with consistent masks, on the CPU."""
        alone = torch.zeros(1, n_features)
        generators = [torch.Generator().manual_seed(derive_seed(seed, "mc-dropout", n)) for n in range(self.passes)]
        return torch.cat([self.masks(alone, generator) for generator in generators])

    def logits(
        self,
        heads: MultiHead,
        features: Float[Tensor, "B D"],
        *,
        seed: int | None = None,
        image_seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "M B K"]:
        """Return all passes at once, M = passes * heads, ordered by pass. See `passes_of`."""
        passes = self.passes_of(heads, features, seed=seed, image_seeds=image_seeds, generator=generator)
        return torch.cat(list(passes))

    def masks(
        self, features: Float[Tensor, "B D"], generators: torch.Generator | Sequence[torch.Generator] | None
    ) -> Float[Tensor, "B D"]:
        """Draw masks [B, D]: 0 for dropped features, else 1 / (1 - rate). Drawn on the CPU, so that devices agree.

        Args:
            features: Features [B, D] to make masks for.
            generators: One generator for the whole batch, or one for each row.
        """
        keep = 1 - self.rate
        if isinstance(generators, Sequence):
            drawn = torch.empty(features.shape)
            for row, generator in zip(drawn, generators, strict=True):
                torch.rand(row.shape, generator=generator, out=row)
        else:
            drawn = torch.rand(features.shape, generator=generators)
        return (drawn < keep).to(device=features.device, dtype=torch.float32, non_blocking=True) / keep

    @staticmethod
    def _dropped(features: Tensor, center: Tensor, masks: Tensor) -> Tensor:
        return center + masks * (features.to(center.dtype) - center)
