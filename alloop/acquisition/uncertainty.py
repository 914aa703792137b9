"""Uncertainty of images. Higher means: ask sooner.

Every function takes log-probabilities [M, N, K] and gives one score per image [N] in nats or shares; none of them
changes its input. A non-finite prediction is an error that names the image's position.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.predictive import check_log_probs, entropy, mean_log_probs, mean_probs
from alloop.predictive import mutual_information as mutual_information  # BALD: one of the scores here


def predictive_entropy(log_probs: Float[Tensor, "M N K"]) -> Float[Tensor, "N"]:
    """Entropy of the members' mean prediction: total uncertainty, in nats.

    Returns:
        One score per image in [0, ln K]; 0 when all members are sure of one class.

    Source: Settles (2009), Active Learning Literature Survey, section 3.1; docs/methods.md section 4.
    """
    return entropy(_mean(log_probs))


def expected_entropy(log_probs: Float[Tensor, "M N K"]) -> Float[Tensor, "N"]:
    """Mean entropy of the members: the uncertainty that more labels do not remove, in nats, in [0, H]."""
    check_log_probs(log_probs)
    return entropy(_wide(log_probs)).mean(dim=0)


def least_confidence(log_probs: Float[Tensor, "M N K"]) -> Float[Tensor, "N"]:
    """1 - max p̄, in [0, 1 - 1/K]. Source: Lewis & Gale (1994)."""
    return 1 - _mean(log_probs).amax(dim=-1).exp()


def margin(log_probs: Float[Tensor, "M N K"]) -> Float[Tensor, "N"]:
    """-(p̄_(1) - p̄_(2)), in [-1, 0]: the closer the two best classes, the higher. Source: Scheffer et al. (2001)."""
    check_log_probs(log_probs)
    best = mean_probs(log_probs).topk(2, dim=-1).values
    return best[:, 1] - best[:, 0]


def variation_ratio(log_probs: Float[Tensor, "M N K"]) -> Float[Tensor, "N"]:
    """1 - (share of members that vote for the most voted class), in [0, 1 - 1/M]. Many ties.

    Raises:
        ValueError: There is only one member.

    Source: Freeman (1965); docs/methods.md section 4.
    """
    check_log_probs(log_probs)
    n_members, _, n_classes = log_probs.shape
    if n_members < 2:
        raise ValueError("the variation ratio needs at least 2 members, got 1")
    votes = torch.nn.functional.one_hot(log_probs.argmax(dim=-1), n_classes).sum(dim=0)
    return 1 - votes.amax(dim=-1) / n_members


def _mean(log_probs: Tensor) -> Tensor:
    check_log_probs(log_probs)
    return mean_log_probs(log_probs)


def _wide(log_probs: Tensor) -> Tensor:
    return log_probs if log_probs.dtype == torch.float64 else log_probs.float()
