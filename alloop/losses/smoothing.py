"""Label smoothing, and its variant that leaves logits alone until they are more than a margin apart."""

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
    """Cross-entropy to q' = (1 - ε) q + ε / K. Weights apply to the smoothed share, too.

    Spreading ε over the K - 1 wrong classes instead is this one with ε K / (K - 1).

    Args:
        log_probs: As in `cross_entropy`, and so are the next three.
        targets: Class positions, or soft targets, which are mixed first, then smoothed.
        weights: One factor per class.
        reduction: "mean", "sum" or "none".
        epsilon: ε in [0, 1].

    Source: Szegedy et al., CVPR 2016, section 7; docs/methods.md section 5.2.
    """
    return cross_entropy(log_probs, smooth(soft(targets, log_probs), epsilon), weights, reduction)


def smooth(targets: Float[Tensor, "B K"], epsilon: float) -> Float[Tensor, "B K"]:
    """(1 - ε) q + ε / K."""
    return targets * (1 - epsilon) + epsilon / targets.shape[-1]


def soft(targets: Targets, like: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Class positions as one-hot rows of the same K, dtype and device; soft targets as they are."""
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
    """CE + α · mean_k max(0, max_j z_j - z_k - m), MbLS.

    Args:
        logits: Raw: a probability does not say how far apart logits are, only how they differ.
        targets: Class positions, or soft targets; the penalty does not depend on them.
        weights: One factor per class; the penalty is not weighted.
        reduction: "mean", "sum" or "none".
        margin: m, logits. For K = 2 confidence above sigmoid(m) is discouraged.
        alpha: α. The paper sums over k: its coefficient is this α / K (the published code is followed).

    Source: Liu et al., "The Devil is in the Margin", CVPR 2022, equation 9; docs/methods.md section 5.3.
    """
    fit = cross_entropy(logits.log_softmax(dim=-1), targets, weights, "none")
    # max(dim): under ties one logit gets the gradient, not all.
    distance = logits.max(dim=-1, keepdim=True).values - logits
    return reduce_loss(fit + alpha * (distance - margin).relu().mean(dim=-1), reduction)
