"""Cross-entropy with a reward for entropy (confidence penalty)."""

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.losses.cross_entropy import Reduction, Targets, cross_entropy, reduce_loss


def entropy_regularized(
    log_probs: Float[Tensor, "B K"],
    targets: Targets,
    beta: float = 0.1,
    threshold: float | None = None,
    weights: Float[Tensor, "K"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return CE - β H(p), or with a threshold Γ the hinge CE + β max(0, Γ - H(p)).

    Args:
        log_probs: Log-probabilities. This and the next three are as in `cross_entropy`.
        targets: Class positions, or soft targets.
        weights: One factor per class; the entropy is not weighted.
        reduction: "mean", "sum" or "none".
        beta: Factor β, at least 0.
        threshold: Threshold Γ in nats. More entropy is not rewarded.

    Source: Pereyra et al., ICLR workshop 2017, equations 2 and 3; docs/methods.md section 5.5.
    """
    fit = cross_entropy(log_probs, targets, weights, "none")
    entropy = entropy_of(log_probs)
    penalty = -entropy if threshold is None else (threshold - entropy).relu()
    return reduce_loss(fit + beta * penalty, reduction)


def entropy_of(log_probs: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Return -Σ_k p_k log p_k in nats, with gradients. Probabilities of exactly 0 add nothing."""
    # Clamping would stop the gradient where it matters.
    log_p = torch.where(log_probs == -torch.inf, 0.0, log_probs)
    return -(log_probs.exp() * log_p).sum(dim=-1)
