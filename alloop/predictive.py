"""Predictions with the axes [M, N, K]: M members, N images, K classes; log-probabilities in nats."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def mean_log_probs(log_probs: Float[Tensor, "M N K"]) -> Float[Tensor, "N K"]:
    """Log of the members' mean probability: log p̄ = logsumexp_m log p_m - log M, in float32 or wider.

    Averages probabilities, not logits, and never leaves log space, so it neither underflows nor rounds to zero.
    """
    wide = log_probs if log_probs.dtype in (torch.float32, torch.float64) else log_probs.float()
    return wide.logsumexp(dim=0) - math.log(wide.shape[0])


def mean_probs(log_probs: Float[Tensor, "M N K"]) -> Float[Tensor, "N K"]:
    """Mean prediction of the members. Each row sums to 1."""
    return mean_log_probs(log_probs).exp()


def entropy(log_probs: Float[Tensor, "*members N K"]) -> Float[Tensor, "*members N"]:
    """-Σ_k p_k log p_k, nats, never below 0; 0 * log 0 counts as 0."""
    # Rounding can leave a sure prediction a hair below 0.
    return -(log_probs.exp() * floor(log_probs)).sum(dim=-1).clamp_max(0)


def mutual_information(log_probs: Float[Tensor, "M N K"]) -> Float[Tensor, "N"]:
    """Mutual information between class and member (BALD), in nats, in [0, min(ln M, ln K)].

    Computed as mean_m KL(p_m || p̄), which does not subtract large numbers. Negative rounding errors become 0.

    Raises:
        ValueError: There is only one member, or a prediction is not finite.

    Source: Houlsby et al. (2011), arXiv 1112.5745, equation 2; docs/methods.md section 4.
    """
    if log_probs.shape[0] < 2:
        raise ValueError("mutual information needs at least 2 members, got 1")
    check_log_probs(log_probs)
    wide = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    mean = floor(mean_log_probs(wide))
    return (wide.exp() * (floor(wide) - mean)).sum(dim=-1).mean(dim=0).clamp_min(0)


def floor(log_probs: Tensor) -> Tensor:
    """Replace log 0 by the lowest finite number, so that 0 * log 0 is 0 and not nan."""
    return log_probs.clamp_min(torch.finfo(log_probs.dtype).min)


def check_log_probs(log_probs: Float[Tensor, "M N K"]) -> None:
    """Refuse log-probabilities that are nan or +inf, and rows that are all -inf. A single -inf (probability 0) is fine.

    Raises:
        ValueError: A row is wrong; names the first one.
    """
    bad = torch.isnan(log_probs) | (log_probs == torch.inf)
    rows = (bad.any(dim=-1) | (log_probs == -torch.inf).all(dim=-1)).any(dim=0).nonzero().flatten()
    if len(rows):
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        raise ValueError(f"the prediction at position {int(rows[0])}{more} is not finite")
