"""Label smoothing, and its margin-based variant."""

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.losses.cross_entropy import Reduction, Targets, cross_entropy, reduce_loss


def label_smoothing(
    log_probs: Float[Tensor, "B K"],
    targets: Targets,
    epsilon: float = 0.05,
    weights: Float[Tensor, "K"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the cross-entropy to q' = (1 - ε) q + ε / K. Weights also apply to the smoothed share.

    Spreading ε over the K - 1 wrong classes instead equals this loss with ε K / (K - 1).

    Args:
        log_probs: Log-probabilities. This and the next three are as in `cross_entropy`.
        targets: Class positions, or soft targets (mixed first, then smoothed).
        weights: One factor per class.
        reduction: "mean", "sum" or "none".
        epsilon: Share ε in [0, 1].

    Source: Szegedy et al., CVPR 2016, section 7; docs/methods.md section 5.2.
    """
    return cross_entropy(log_probs, smooth(soft(targets, log_probs), epsilon), weights, reduction)


def smooth(targets: Float[Tensor, "B K"], epsilon: float) -> Float[Tensor, "B K"]:
    """Return (1 - ε) q + ε / K."""
    return targets * (1 - epsilon) + epsilon / targets.shape[-1]


def soft(targets: Targets, like: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Return class positions as one-hot rows like `like`, and soft targets unchanged."""
    if targets.is_floating_point():
        return targets
    return torch.nn.functional.one_hot(targets, like.shape[-1]).to(like.dtype)


def margin_label_smoothing(
    logits: Float[Tensor, "B K"],
    targets: Targets,
    margin: float = 10.0,
    alpha: float = 0.1,
    weights: Float[Tensor, "K"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return CE + α · mean_k max(0, max_j z_j - z_k - m), MbLS.

    Args:
        logits: Raw logits.
        targets: Class positions, or soft targets; the penalty does not depend on them.
        weights: One factor per class; the penalty is not weighted.
        reduction: "mean", "sum" or "none".
        margin: Margin m between logits. For K = 2, confidence above sigmoid(m) is discouraged.
        alpha: Factor α, as in the published code. The paper sums over k, so its coefficient is α / K.

    Source: Liu et al., "The Devil is in the Margin", CVPR 2022, equation 9; docs/methods.md section 5.3.
    """
    fit = cross_entropy(logits.log_softmax(dim=-1), targets, weights, "none")
    # With max(dim), only one of several equal logits gets the gradient.
    distance = logits.max(dim=-1, keepdim=True).values - logits
    return reduce_loss(fit + alpha * (distance - margin).relu().mean(dim=-1), reduction)
