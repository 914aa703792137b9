"""Losses that compare confidence with correctness over a batch: MMCE and DCA."""

import functools
import logging

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alloop.composition import LOSSES
from alloop.losses.cross_entropy import Reduction, cross_entropy, reduce_loss

log = logging.getLogger(__name__)

_ROWS = 1024  # rows of the kernel in memory at once
_EPSILON = 1e-12  # under the root, whose slope is infinite at 0

Classes = Int[Tensor, "B"]


def mmce_loss(
    log_probs: Float[Tensor, "B K"],
    targets: Classes,
    weight: float = 2.0,
    width: float = 0.4,
    class_weights: Float[Tensor, "K"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return CE + λ · `mmce`. Tune λ on a validation part, from {0.25, 0.5, 1, 2, 4}.

    The penalty is one number per batch. With reduction "none" it is added to every image's cross-entropy.
    """
    fit = cross_entropy(log_probs, targets, class_weights, "none")
    return reduce_loss(fit + weight * mmce(log_probs, targets, width), reduction)


def mmce(log_probs: Float[Tensor, "B K"], targets: Classes, width: float = 0.4) -> Tensor:
    """Root of the weighted maximum mean calibration error of a batch, a scalar in [0, 2).

    MMCE_w² = Σ_ij v_i v_j exp(-|r_i - r_j| / width), where r is the confidence and v is (1 - r) / (number right) for
    right predictions and -r / (number wrong) for wrong ones; written out, these are the paper's three sums. If nothing
    is left to improve, value and gradient are 0. Published code divides by the numbers of pairs twice.

    Raises:
        ValueError: Targets are soft: a prediction of a mixed image is neither right nor wrong.

    Source: Kumar, Sarawagi & Jain, ICML 2018, equation 6; docs/methods.md section 5.6.
    """
    log_confidence, correct = _confidence(log_probs, targets, "mmce")
    if len(targets) < LOSSES["mmce"].smallest_batch:
        _warn_of_noise(len(targets))
    n_right = correct.sum().clamp_min(1)
    n_wrong = (~correct).sum().clamp_min(1)
    confidence = log_confidence.exp()
    # 1 - r by expm1, because r rounds to 1 long before 1 - r is 0.
    v = torch.where(correct, -torch.expm1(log_confidence) / n_right, -confidence / n_wrong)
    square = _quadratic_form(v, confidence, width)
    is_positive = square > 0  # rounding makes it slightly negative
    return torch.where(is_positive, (torch.where(is_positive, square, 1.0) + _EPSILON).sqrt(), 0.0)


def dca_loss(
    log_probs: Float[Tensor, "B K"],
    targets: Classes,
    alpha: float = 1.0,
    beta: float = 5.0,
    class_weights: Float[Tensor, "K"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return α CE + β · `dca`. With reduction "none" the penalty is added to every image's cross-entropy."""
    fit = cross_entropy(log_probs, targets, class_weights, "none")
    return reduce_loss(alpha * fit + beta * dca(log_probs, targets), reduction)


def dca(log_probs: Float[Tensor, "B K"], targets: Classes) -> Tensor:
    """Difference between mean confidence and accuracy of a batch: |mean r - mean c|, a scalar in [0, 1].

    Accuracy has no gradient. If both are equal, the gradient is 0. Over- and under-confident images cancel.

    Raises:
        ValueError: Targets are soft, as in `mmce`.

    Source: Liang et al., BMVC 2020, equation 3; docs/methods.md section 5.7.
    """
    log_confidence, correct = _confidence(log_probs, targets, "dca")
    return (log_confidence.exp().mean() - correct.to(log_probs.dtype).mean()).abs()


def _confidence(log_probs: Tensor, targets: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the log of the top class's probability [B], and whether the top class is right [B]."""
    if targets.is_floating_point():
        raise ValueError(f"{name} needs class positions: whether a prediction is right is undefined for soft targets")
    top = log_probs.max(dim=-1)
    return top.values, top.indices == targets


def _quadratic_form(v: Tensor, confidence: Tensor, width: float) -> Tensor:
    """Return Σ_ij v_i v_j exp(-|r_i - r_j| / width). Memory is O(B) plus one block of rows."""

    def block(rows: Tensor, row_confidence: Tensor) -> Tensor:
        kernel = torch.exp(-(row_confidence.unsqueeze(1) - confidence.unsqueeze(0)).abs() / width)
        return rows @ kernel @ v

    if len(v) <= _ROWS:
        return block(v, confidence)
    blocks = zip(torch.split(v, _ROWS), torch.split(confidence, _ROWS), strict=True)
    return torch.stack([checkpoint(block, rows, part, use_reentrant=False) for rows, part in blocks]).sum()


@functools.cache
def _warn_of_noise(n: int) -> None:
    least = LOSSES["mmce"].smallest_batch
    log.warning("MMCE over a batch of %d images is mostly noise; it needs at least %d", n, least)
