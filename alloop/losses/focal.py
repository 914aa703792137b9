"""Focal loss: images that are predicted well count less, which lowers the confidence."""

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.losses.cross_entropy import Reduction, Targets, reduce_loss
from alloop.losses.smoothing import soft

THRESHOLD, STEEP, FLAT = 0.2, 5.0, 3.0  # FLSD-53: γ = 5 where p < 0.2, else 3


def focal(
    log_probs: Float[Tensor, "B K"],
    targets: Targets,
    gamma: float = 3.0,
    weights: Float[Tensor, "K"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return -(1 - p_y)^γ log p_y. This is not the "sigmoid focal" loss of detectors.

    Soft targets give -Σ_k q_k (1 - p_k)^γ log p_k, an extension that is not in the papers.

    Args:
        log_probs: Log-probabilities. This and the next three are as in `cross_entropy`.
        targets: Class positions, or soft targets.
        weights: One factor per class.
        reduction: "mean", "sum" or "none".
        gamma: Exponent γ: 0 (cross-entropy) or at least 1. Between them the slope is infinite at p = 1.

    Raises:
        ValueError: γ is neither 0 nor at least 1.

    Source: Lin et al., ICCV 2017; for calibration Mukhoti et al., NeurIPS 2020; docs/methods.md section 5.4.
    """
    if gamma != 0 and not gamma >= 1:
        raise ValueError(f"gamma of the focal loss must be 0 or at least 1, not {gamma:g}")
    return _focal(log_probs, targets, torch.full_like(log_probs, gamma), weights, reduction)


def focal_53(
    log_probs: Float[Tensor, "B K"],
    targets: Targets,
    weights: Float[Tensor, "K"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return FLSD-53: the focal loss with γ = 5 where p < 0.2, else 3, without a gradient through that choice.

    With soft targets, each class has its γ by its own p_k (extension). Source: Mukhoti et al., NeurIPS 2020, section 5.
    """
    gamma = torch.where(log_probs.detach().exp() < THRESHOLD, STEEP, FLAT).to(log_probs.dtype)
    return _focal(log_probs, targets, gamma, weights, reduction)


def _focal(log_probs: Tensor, targets: Targets, gamma: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    share = soft(targets, log_probs)
    if weights is not None:
        share = share * weights
    # Classes of weight 0 must not give 0 * inf, neither in the value nor in the gradient.
    log_p = torch.where(share == 0, 0.0, log_probs)
    rest = -torch.expm1(log_p)  # 1 - p, exact for p close to 1
    return reduce_loss(-(share * rest.pow(gamma) * log_p).sum(dim=-1), reduction)
