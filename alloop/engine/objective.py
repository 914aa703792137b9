"""Objective of training: a loss with weights for heads and classes, as one function of logits and targets."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.losses.composed import composed_loss
from alloop.losses.cross_entropy import Targets
from alloop.losses.multi_head import LossScale, multi_head_loss, multi_head_slopes
from alloop.losses.named import Loss


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss on M heads.

    Attributes:
        loss: Any of `composition.LOSSES`.
        head_weights: Weights ω [M, K] of classes in the loss of each head. None if all heads have the same loss.
        class_weights: Weights [K] against imbalance. None weighs all classes alike.
        loss_scale: See `losses.multi_head`.
    """

    loss: Loss
    head_weights: Tensor | None
    class_weights: Tensor | None
    loss_scale: LossScale

    def __call__(self, logits: Float[Tensor, "M B K"], targets: Targets, *, check: bool = True) -> Tensor:
        """Return the mean loss of a batch.

        Raises:
            ValueError: A logit is not finite. The check waits for the device; without it such a loss is unusable.
        """
        if self.loss.rule.is_plain and self.class_weights is None:
            return multi_head_loss(logits, targets, self.head_weights, loss_scale=self.loss_scale)
        return composed_loss(
            self.loss,
            logits,
            targets,
            self.head_weights,
            self.class_weights,
            loss_scale=self.loss_scale,
            check=check,
        )

    def slopes(self, logits: Float[Tensor, "M B K"], targets: Targets) -> tuple[Tensor, Float[Tensor, "M B K"]]:
        """Return the mean loss of a batch, and its slope by every logit."""
        if self.loss.rule.is_plain:
            return multi_head_slopes(logits, targets, self.head_weights, self.class_weights, loss_scale=self.loss_scale)
        leaf = logits.detach().requires_grad_()
        with torch.enable_grad():
            value = self(leaf, targets)
            (slopes,) = torch.autograd.grad(value, leaf)
        return value.detach(), slopes

    def to(self, device: torch.device) -> "Objective":
        heads, classes = self.head_weights, self.class_weights
        return dataclasses.replace(
            self,
            head_weights=None if heads is None else heads.to(device),
            class_weights=None if classes is None else classes.to(device),
        )


def balanced_weights(targets: Int[Tensor, "N"], n_classes: int) -> Float[Tensor, "K"]:
    """Return weights N / (K' n_k) for the K' classes that have labels: these classes count alike, and the mean is 1.

    Classes without labels get weight 1, which no label uses.
    """
    counts = torch.bincount(targets, minlength=n_classes)
    n_present = int((counts > 0).sum())
    return torch.where(counts > 0, len(targets) / (n_present * counts.clamp_min(1)), 1.0)
