"""Logits of a network's heads for features. Each head under each dropout pass is one member."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.engine.build import build_dropout, build_loss
from alloop.engine.settings import EngineSettings
from alloop.losses.named import Loss
from alloop.models.dropout import HeadDropout
from alloop.models.heads import MultiHead
from alloop.seeds import derive_seed


class HeadPasses:
    """Applies heads to features as one model version was trained: its loss and its dropout masks.

    The same images always get the same logits: a dropout mask depends on the pass and on the content hash of the
    image, not on the batch, the position or the device.
    """

    def __init__(self, settings: EngineSettings, seed: int) -> None:
        """`settings` hold [model] and [train] as the model version was trained, `seed` is the seed of the version."""
        self.loss: Loss = build_loss(settings)
        self._dropout: HeadDropout | None = build_dropout(settings)
        self._seed = derive_seed(seed, "dropout masks")
        is_consistent = settings.model.consistent_masks
        self._masks = None if is_consistent else torch.Generator().manual_seed(self._seed)

    @property
    def is_repeatable(self) -> bool:
        """True if the same features have the same logits at every call, even without content hashes."""
        return self._dropout is None or self._masks is None

    def logits(
        self, heads: MultiHead, features: Float[Tensor, "B D"], sha256s: Sequence[str] | None = None
    ) -> Float[Tensor, "M B K"]:
        """Raw logits of the heads, pass by pass.

        Args:
            heads: Heads of one network.
            features: Features [B, D].
            sha256s: Content hashes of the images [B]. None if the features do not belong to images: dropout masks are
                then drawn one after the other.
        """
        with torch.inference_mode():
            return self.logits_with_gradient(heads, features, sha256s)

    def logits_with_gradient(
        self, heads: MultiHead, features: Float[Tensor, "B D"], sha256s: Sequence[str] | None = None
    ) -> Float[Tensor, "M B K"]:
        """Raw logits as from `logits`, differentiable with respect to the features if these require a gradient."""
        if self._dropout is None:
            rows: Tensor = heads(features)
            return rows
        if self._masks is None:
            return self._dropout.logits(heads, features, seed=self._seed)
        if sha256s is not None:
            seeds = [derive_seed(self._seed, sha256) for sha256 in sha256s]
            return self._dropout.logits(heads, features, image_seeds=seeds)
        return self._dropout.logits(heads, features, generator=self._masks)

    def lengths(self, heads: MultiHead, features: Float[Tensor, "B D"]) -> Float[Tensor, "M B"]:
        """L1 norm of the input of every member's last layer, for GradNorm.

        Dropout is left out: the norm without masks is the mean over masks.
        """
        with torch.inference_mode():
            seen = (features - heads.center) / heads.scale
            passes = 1 if self._dropout is None else self._dropout.passes
            return seen.abs().sum(dim=-1).expand(passes * heads.n_heads, -1)

    def member_log_probs(self, logits: Float[Tensor, "M B K"]) -> Float[Tensor, "M B K"]:
        """Every member's prediction, uncalibrated."""
        with torch.inference_mode():
            return self.loss.log_probs(logits)
