"""Cross-entropy on log-probabilities, for class positions or soft targets, always divided by the batch size."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
Targets = Int[Tensor, "B"] | Float[Tensor, "B K"]


def cross_entropy(
    log_probs: Float[Tensor, "B K"],
    targets: Targets,
    weights: Float[Tensor, "K"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return -Σ_k w_k q_ik log p_ik for every image i, in nats.

    The input is log-probabilities, not logits: apply `log_softmax` first, in float32 or wider. "mean" always divides by
    B. PyTorch divides by the sum of the batch's weights for class positions: the scale of the weights then has no
    effect, and in a batch of equal weights the weights have none.

    Args:
        log_probs: Log-probabilities.
        targets: Class positions [B], or rows [B, K] that sum to 1.
        weights: One non-negative factor per class; None: all 1.
        reduction: "mean" over B, "sum", or "none" for one value per image [B].

    Source: docs/methods.md sections 1 (pitfalls) and 5.1.
    """
    return reduce_loss(_per_image(log_probs, targets, weights), reduction)


def reduce_loss(per_image: Float[Tensor, "B"], reduction: Reduction) -> Tensor:
    """Reduce values per image [B] to their mean or sum, or keep them."""
    if reduction == "mean":
        return per_image.mean()
    if reduction == "sum":
        return per_image.sum()
    return per_image


def _per_image(log_probs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    if targets.is_floating_point():
        share = targets if weights is None else targets * weights
        # 0 * log 0 counts as 0, in the value and in the gradient.
        return -torch.where(share == 0, 0.0, share * log_probs).sum(dim=-1)
    picked = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return -picked if weights is None else -picked * weights[targets]
