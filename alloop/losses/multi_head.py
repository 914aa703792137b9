"""Multi-Head Multi-Loss: M heads on one trunk, each with its own class weights, trained together with their mean.

Source: Galdran, Verjans, Carneiro & González Ballester, "Multi-Head Multi-Loss Model Calibration", MICCAI 2023
(arXiv 2303.01099); where paper and published code differ, docs/methods.md section 1 says which one is followed.
"""

import logging
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.losses.cross_entropy import Reduction, Targets, cross_entropy

log = logging.getLogger(__name__)

Average = Literal["prob", "logit"]
LossScale = Literal["mean", "sum"]
Specialties = tuple[tuple[int, ...], ...]  # class positions that each head weighs strongly


def multi_head_loss(
    logits: Float[Tensor, "M B K"],
    targets: Targets,
    head_weights: Float[Tensor, "M K"] | None = None,
    average: Average = "prob",
    loss_scale: LossScale = "mean",
    reduction: Reduction = "mean",
) -> Tensor:
    """Return CE(p̄, y) + Σ_m wCE_m(z_m, y), divided by M + 1 if `loss_scale` is "mean".

    With one head, the result is plain cross-entropy. The computation uses float32 or wider, outside autocast.

    Args:
        logits: Raw logits of every head.
        targets: Class positions [B], or rows [B, K] that sum to 1.
        head_weights: Weights ω of every head, from `class_weights`; None: all 1.
        average: Average of the heads: mean probability (paper), or softmax of the mean logit (published code; all heads
            then get the same gradient from the first term).
        loss_scale: "sum" is the paper's formula; "mean" keeps the learning rate independent of M (published code).
        reduction: "mean" over B, "sum", or "none" for one value per image [B].

    Source: equations 3 and 4 of the paper; docs/methods.md section 1.
    """
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits if logits.dtype == torch.float64 else logits.float()
        n_heads = wide.shape[0]
        log_probs = wide.log_softmax(dim=-1)
        if n_heads == 1:
            return cross_entropy(log_probs[0], targets, reduction=reduction)
        loss = cross_entropy(average_log_probs(wide, average), targets, reduction=reduction)
        for head in range(n_heads):
            weights = None if head_weights is None else head_weights[head]
            loss = loss + cross_entropy(log_probs[head], targets, weights, reduction)
        return loss / (n_heads + 1) if loss_scale == "mean" else loss


def average_log_probs(logits: Float[Tensor, "M B K"], average: Average = "prob") -> Float[Tensor, "B K"]:
    """Return log p̄ of the heads' logits: log of the mean probability, or log-softmax of the mean logit."""
    if average == "logit":
        return logits.mean(dim=0).log_softmax(dim=-1)
    # log(mean(softmax)) would underflow to -inf.
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(logits.shape[0])


def multi_head_slopes(
    logits: Float[Tensor, "M B K"],
    targets: Targets,
    head_weights: Float[Tensor, "M K"] | None = None,
    weights: Float[Tensor, "K"] | None = None,
    loss_scale: LossScale = "mean",
) -> tuple[Tensor, Float[Tensor, "M B K"]]:
    """Return the mean `multi_head_loss` of a batch, averaged by probability, and its slope by every logit.

    The slopes are written out, because the gradient of linear heads is one product of the slopes and the features. With
    r_mk = p_mk / Σ_m p_mk, the slope of the loss by log p_mk is -q_k w_k (r_mk + ω_mk).

    Args:
        logits: Raw logits of every head, float32 or float64.
        targets: Class positions [B], or rows [B, K] that sum to 1.
        head_weights: Weights ω of every head; None: all 1.
        weights: Weights w against class imbalance; None: all 1.
        loss_scale: As in `multi_head_loss`.
    """
    n_heads, n, n_classes = logits.shape
    if targets.is_floating_point():
        share = targets.to(logits.dtype)
    else:
        share = torch.nn.functional.one_hot(targets, n_classes).to(logits.dtype)
    share = share if weights is None else share * weights.to(logits.dtype)
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    if n_heads == 1:
        pull, value = share.expand_as(probs), -(share * log_probs).sum()
    else:
        omega = torch.ones_like(probs[:, :1]) if head_weights is None else head_weights.to(logits.dtype).unsqueeze(1)
        total = probs.sum(dim=0).clamp_min(torch.finfo(logits.dtype).tiny)
        value = -(share * ((total / n_heads).log() + (omega * log_probs).sum(dim=0))).sum()
        pull = share * (probs / total + omega)
    slopes = probs * pull.sum(dim=-1, keepdim=True) - pull
    scale = 1 / (n * (n_heads + 1)) if loss_scale == "mean" and n_heads > 1 else 1 / n
    return value * scale, slopes * scale


def class_weights(specialties: Specialties, n_classes: int) -> Float[Tensor, "M K"]:
    """Return ω: M for the classes that are a head's specialty, 1/M for all others; all 1 for a single head.

    Source: section 2.2 of the paper. M is the number of heads, as in its example for K = 4 and M = 2.
    """
    n_heads = len(specialties)
    weights = torch.full((n_heads, n_classes), 1 / n_heads)
    for head, classes in enumerate(specialties):
        weights[head, list(classes)] = float(n_heads)
    return weights


def assign_specialties(
    n_classes: int, n_heads: int, generator: torch.Generator, known: Sequence[Sequence[int]] = ()
) -> Specialties:
    """Assign the classes to heads as their specialties, at random. Known parts are kept.

    Every class is the specialty of one head. If M does not divide K, the K mod M extra classes go to distinct heads at
    random. With more heads than classes, every head has one class, class k is the specialty of floor or ceil(M / K)
    heads, and a warning is logged, since these heads are similar. Classes outside `known` go to the heads with the
    fewest classes, drawn among equals.

    Args:
        n_classes: Number of classes K, at least 2.
        n_heads: Number of heads M, at least 1.
        generator: Generator of the draw.
        known: Parts of an earlier version, as class positions: empty, or one part per head.

    Raises:
        ValueError: There are fewer than two classes or no head, or `known` does not fit.

    Source: docs/methods.md section 1, "Class weights".
    """
    if n_classes < 2 or n_heads < 1:
        raise ValueError(f"need at least 2 classes and 1 head, got {n_classes} and {n_heads}")
    if known:
        return _extend(n_classes, n_heads, generator, known)
    if n_heads > n_classes:
        log.info("%d heads for %d classes: several heads share a specialty", n_heads, n_classes)
        rounds = math.ceil(n_heads / n_classes)
        order = torch.cat([torch.randperm(n_classes, generator=generator) for _ in range(rounds)])[:n_heads]
        return tuple((int(position),) for position in order)
    return _extend(n_classes, n_heads, generator, [()] * n_heads)


def _extend(n_classes: int, n_heads: int, generator: torch.Generator, known: Sequence[Sequence[int]]) -> Specialties:
    """Give each class without a head to one of the heads with the fewest classes."""
    taken = {position for part in known for position in part}
    if len(known) != n_heads or not taken <= set(range(n_classes)):
        raise ValueError(
            f"{len(known)} known parts over classes {sorted(taken)} do not fit {n_heads} heads, K={n_classes}"
        )
    parts = [list(part) for part in known]
    for position in torch.randperm(n_classes, generator=generator).tolist():
        if position in taken:
            continue
        fewest = min(map(len, parts))
        equals = [head for head, part in enumerate(parts) if len(part) == fewest]
        parts[equals[int(torch.randint(len(equals), (1,), generator=generator))]].append(position)
    return tuple(tuple(sorted(part)) for part in parts)
