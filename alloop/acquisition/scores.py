"""Strategies that choose by one score of each image: the highest first, or a draw by the score."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from alloop.acquisition import uncertainty
from alloop.acquisition.arrange import BLOCK_FLOATS, blocks
from alloop.acquisition.batch import check_scores
from alloop.acquisition.perturb import draw
from alloop.acquisition.strategy import Choice, Cost, Keys, Size
from alloop.composition import PERTURBATIONS
from alloop.seeds import derive_seed

Scores = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """A score of each image.

    Attributes:
        function: Log-probabilities [M, N, K] to scores [N]. The rule's need says of what: the calibrated prediction
            (M = 1), or all members.
        offset: Number that makes every score at least 0 when it is added.
        has_ties: Few values are possible, so that among equal scores the entropy decides.
    """

    function: Callable[[Tensor], Tensor]
    offset: float = 0.0
    has_ties: bool = False


SCORES: Mapping[str, Score] = {
    "entropy": Score(uncertainty.predictive_entropy),
    "least-confidence": Score(uncertainty.least_confidence),
    "margin": Score(uncertainty.margin, offset=1.0),
    "expected-entropy": Score(uncertainty.expected_entropy),
    "mutual-information": Score(uncertainty.mutual_information),
    "variation-ratio": Score(uncertainty.variation_ratio, has_ties=True),
}


def choose_by_score(
    name: str,
    scores: Scores,
    entropies: Scores,
    keys: Keys,
    k: int,
    seed: int,
    *,
    perturb: str = "none",
    beta: float = 1.0,
    explore: float = 0.0,
) -> Choice:
    """Take the k highest scores, or draw k images by their scores as `perturb.draw` does.

    Equal scores go by key. The choice has the scores as given, also where a perturbed score decided. A power needs
    scores of at least 0, so it is taken of 1 + margin.

    Args:
        name: Name of the score, a key of `SCORES`.
        scores: Scores [N], finite; higher means ask sooner.
        entropies: Predictive entropies [N].
        keys: Keys [N], distinct.
        k: At most N images are chosen.
        seed: Seed of the draw.
        perturb: Name in `composition.PERTURBATIONS`.
        beta: Exponent or factor of the perturbation.
        explore: Share of the weight that is spread evenly.

    Raises:
        ValueError: A score is not finite; names the first position.
    """
    check_scores(scores, keys)
    if perturb == "none":
        second = entropies if SCORES[name].has_ties else np.zeros(len(scores))
        best = np.lexsort((keys, -second, -scores))[: max(k, 0)]
        return Choice(best, scores[best])
    weighed = scores
    if PERTURBATIONS[perturb].needs_positive:
        # By rounding, the margin of a sure prediction can be slightly below -1.
        weighed = np.maximum(scores + SCORES[name].offset, 0)
    stream = derive_seed(seed, name, perturb)
    choice = draw(weighed, keys, k, stream, kind=perturb, beta=beta, explore=explore)
    return Choice(choice.positions, scores[choice.positions], choice.probabilities, choice.notes)


def margin_of(log_probs: Float[Tensor, "N K"]) -> Scores:
    """Return -(p̄_(1) - p̄_(2)) of each image [N], in [-1, 0]."""
    return np.minimum(_in_blocks(uncertainty.margin, log_probs.unsqueeze(0)), 0)


def bald_of(members: Float[Tensor, "M N K"]) -> Scores:
    """Return the mutual information of each image [N], in nats."""
    return _in_blocks(uncertainty.mutual_information, members)


def cost(size: Size) -> Cost:
    """Return what a choice by scores takes that are there already, one number of each image."""
    # A few copies and orders of all images.
    return Cost(500.0 * size.candidates, 4.0 * size.candidates + 16.0 * BLOCK_FLOATS + 64.0 * size.candidates)


def _in_blocks(function: Callable[[Tensor], Tensor], log_probs: Tensor) -> Scores:
    n_members, n, n_classes = log_probs.shape
    parts = [function(log_probs[:, start:stop]) for start, stop in blocks(n, n_members * n_classes)]
    return torch.cat(parts).double().numpy() if parts else np.empty(0)
