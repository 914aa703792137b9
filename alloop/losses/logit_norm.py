"""LogitNorm: cross-entropy on the direction of the logits, so that their norm does not affect the confidence.

A model trained this way has two outputs. Probabilities come from the normalized logits, out-of-distribution scores from
the raw ones, whose norm carries the signal.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.losses.cross_entropy import Reduction, Targets, cross_entropy

_EPSILON = 1e-7  # as published
_SHORTEST = 1e-4  # smaller norms count as this, because the published formula has a slope of 1e7 / τ at 0


def normalize_logits(logits: Float[Tensor, "*members B K"], tau: float = 0.04) -> Float[Tensor, "*members B K"]:
    """Return z / (τ (‖z‖₂ + 1e-7)) for each head, in float32 or wider, since ‖z‖² overflows float16 beyond 255.

    Args:
        logits: Raw logits.
        tau: Temperature τ > 0. Tune it on every data set.

    Source: Wei et al., ICML 2022, equation 6; docs/methods.md section 5.8.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) + _EPSILON
    scaled: Tensor = wide / (tau * norm.clamp_min(_SHORTEST))
    return scaled


def logit_norm_loss(
    logits: Float[Tensor, "B K"],
    targets: Targets,
    tau: float = 0.04,
    weights: Float[Tensor, "K"] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return cross-entropy of softmax(`normalize_logits`). Its minimum is ln(1 + (K-1) exp(-sqrt(K / (K-1)) / τ))."""
    return cross_entropy(normalize_logits(logits, tau).log_softmax(dim=-1), targets, weights, reduction)
