"""What a network's heads say of features, member by member: each head, under each dropout pass."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.config.schema import Config
from alloop.engine.build import build_dropout, build_loss
from alloop.evaluation import ood
from alloop.losses.named import Loss
from alloop.models.dropout import HeadDropout
from alloop.models.heads import MultiHead
from alloop.seeds import derive_seed


class Predictor:
    """Predicts with the networks of one model version. The same images always get the same predictions.

    A dropout mask depends on the pass and on the image's content hash; not on the batch, the position or the device.
    """

    def __init__(self, config: Config, seed: int) -> None:
        """`seed` is the model version's."""
        self.loss: Loss = build_loss(config)
        self._dropout: HeadDropout | None = build_dropout(config)
        self._seed = derive_seed(seed, "dropout masks")
        is_consistent = config.model.consistent_masks
        self._masks = None if is_consistent else torch.Generator().manual_seed(self._seed)

    @property
    def is_repeatable(self) -> bool:
        """Whether features have the same logits whenever they are asked for: no masks are drawn on the way."""
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
        """L1 norm of what every member's last layer sees, for GradNorm.

        Of MC dropout it is the norm without: that is the mean over masks.
        """
        with torch.inference_mode():
            seen = (features - heads.center) / heads.scale
            passes = 1 if self._dropout is None else self._dropout.passes
            return seen.abs().sum(dim=-1).expand(passes * heads.n_heads, -1)

    def log_probs(self, logits: Float[Tensor, "M B K"]) -> Float[Tensor, "M B K"]:
        """Every member's prediction, uncalibrated."""
        with torch.inference_mode():
            return self.loss.log_probs(logits)


def ood_score(
    name: str,
    logits: Float[Tensor, "M B K"],
    lengths: Float[Tensor, "M B"],
    members: Float[Tensor, "M B K"],
    calibrated: Float[Tensor, "B K"],
) -> Float[Tensor, "B"]:
    """How unlike the training images, larger is more so.

    Args:
        name: `[acquisition] ood_score`; not "odin", for which see `engine.odin`.
        logits: Raw; energy and max logit are means over members of them.
        lengths: As in `Predictor.lengths`, for GradNorm.
        members: Every member's uncalibrated prediction, for mutual information.
        calibrated: Log p̄, for scores of one distribution.
    """
    with torch.inference_mode():
        if name == "gradnorm":
            # Features count by their norm only: one number that has it will do.
            return ood.gradnorm(lengths.unsqueeze(-1), logits).float()
        if name in ("energy", "max-logit"):
            return (ood.energy if name == "energy" else ood.max_logit)(logits).float()
        if name == "mutual-information":
            return ood.mutual_information(members).float()
        of_pooled = {"msp": ood.msp, "entropy": ood.entropy, "gen": ood.gen}
        return of_pooled[name](calibrated.unsqueeze(0)).float()


@dataclasses.dataclass(frozen=True)
class Network:
    """One trained network. `trunk` is its trunk's state by name; empty in frozen mode, where it is as published."""

    heads: MultiHead  # in eval mode, on the CPU
    trunk: dict[str, Tensor]
