"""Multi-head multi-loss with any loss instead of cross-entropy."""

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.losses.cross_entropy import Reduction, Targets
from alloop.losses.multi_head import Average, LossScale, average_log_probs
from alloop.losses.named import Loss, check_finite, widen


def composed_loss(
    loss: Loss,
    logits: Float[Tensor, "M B K"],
    targets: Targets,
    head_weights: Float[Tensor, "M K"] | None = None,
    class_weights: Float[Tensor, "K"] | None = None,
    average: Average = "prob",
    loss_scale: LossScale = "mean",
    reduction: Reduction = "mean",
    *,
    check: bool = True,
) -> Tensor:
    """Return ℓ(p̄, q) + Σ_m ℓ_m(z_m, q), divided by M + 1 if `loss_scale` is "mean".

    ℓ_m weights classes by ω_m times the imbalance weights, the pooled term by the imbalance weights alone. MbLS and
    LogitNorm replace cross-entropy in the heads' terms only (LogitNorm's p̄ is pooled from its normalized heads). MMCE
    and DCA replace it in the pooled term only. With one head, the result is the plain loss without ω and scale. The
    computation uses float32 or wider, outside autocast.

    Args:
        loss: Loss of `find_loss`.
        logits: Raw logits of every head.
        targets: Class positions [B], or rows [B, K] that sum to 1 if the loss accepts them.
        head_weights: Weights ω of every head, from `multi_head.class_weights`; None: all 1.
        class_weights: Weights against class imbalance; None: all 1.
        average: Average of the pooled term; see `multi_head_loss`.
        loss_scale: "mean" keeps the learning rate independent of M; "sum" is the paper's formula.
        reduction: "mean" over B, "sum", or "none" for one value per image [B].
        check: Refuse logits that are not finite. On a GPU the check waits for the results.

    Raises:
        ValueError: The loss does not accept soft targets, or a row of logits is not finite.

    Source: docs/methods.md section 1, "Composition".
    """
    n_heads = logits.shape[0]
    if n_heads == 1:
        return loss.value(logits[0], targets, class_weights, reduction, check=check)
    with torch.autocast(logits.device.type, enabled=False):
        wide = check_finite(widen(logits)) if check else widen(logits)
        pooled = average_log_probs(loss.scores(wide), average)
        total = loss.pooled_term(pooled, targets, class_weights, reduction)
        for head in range(n_heads):
            weights = _product(None if head_weights is None else head_weights[head], class_weights)
            total = total + loss.head_term(wide[head], targets, weights, reduction)
        return total / (n_heads + 1) if loss_scale == "mean" else total


def _product(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first * second
