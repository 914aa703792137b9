"""What the axes [M, N, K] mean: M members, N images, K classes, log-probabilities in nats."""

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
    """The members' mean prediction, rows summing to 1."""
    return mean_log_probs(log_probs).exp()
