"""Strategies that give every image a score of its own and take the highest."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from alloop.acquisition import uncertainty
from alloop.acquisition.arrange import BLOCK_FLOATS, blocks, check, in_key_order
from alloop.acquisition.batch import top_k
from alloop.acquisition.perturb import draw, gumbel
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size, Strategy
from alloop.composition import STRATEGIES, Need
from alloop.seeds import derive_seed

Scores = npt.NDArray[np.float64]

_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "entropy": uncertainty.predictive_entropy,
    "margin": uncertainty.margin,
    "least-confidence": uncertainty.least_confidence,
    "expected-entropy": uncertainty.expected_entropy,
    "mutual-information": uncertainty.mutual_information,
    "variation-ratio": uncertainty.variation_ratio,
}


def scores_of(name: str, candidates: Candidates) -> Scores:
    """One score per image [N], higher asked sooner.

    Args:
        name: Of a strategy that is a score; not "random".
        candidates: With what the score needs.

    Raises:
        ValueError: A prediction is missing or not finite, or there is a single member where several are compared.
    """
    check(candidates, tuple(STRATEGIES[name].needs))
    return _scores(_FUNCTIONS[name], _predictions(candidates, name))


def perturbed(
    name: str, candidates: Candidates, k: int, seed: int, *, kind: str, beta: float = 1.0, explore: float = 0.0
) -> Choice:
    """Draw k images by a score, as `perturb.draw` does.

    Scores are as the strategy gives them. A power is taken of what is never negative: of 1 + score for the margin.
    """
    scores = scores_of(name, candidates)
    offset = 1.0 if name == "margin" and kind == "power" else 0.0
    # The margin of a sure prediction is -1, give or take rounding.
    weighed = np.maximum(scores + offset, 0) if kind == "power" else scores
    choice = draw(weighed, candidates.keys, k, derive_seed(seed, name, kind), kind=kind, beta=beta, explore=explore)
    return Choice(choice.positions, scores[choice.positions], choice.probabilities, choice.notes)


@in_key_order()
def random(candidates: Candidates, k: int, seed: int) -> Choice:
    """Draw k images uniformly. Scores are the noise that decides; probabilities are 1 / (how many were left)."""
    noise = gumbel(candidates.keys, derive_seed(seed, "random"))
    positions = top_k(noise, candidates.keys, k)
    return Choice(positions, noise[positions], 1 / (len(candidates) - np.arange(k)))


def margin_of(log_probs: Float[Tensor, "N K"]) -> Scores:
    """-(p̄_(1) - p̄_(2)) of each image [N], in [-1, 0]."""
    return np.minimum(_scores(uncertainty.margin, log_probs.unsqueeze(0)), 0)


def bald_of(members: Float[Tensor, "M N K"]) -> Scores:
    """How much the members disagree on each image [N], in nats."""
    return _scores(uncertainty.mutual_information, members)


def cost(n_members: int, size: Size) -> Cost:
    """Of a score that looks at so many predictions of every image."""
    n_numbers = size.candidates * max(n_members, 1) * size.classes
    # The predictions in key order, a few copies of a block, and scores and orders of all images.
    return Cost(500.0 * n_numbers, 4.0 * n_numbers + 16.0 * 4 * BLOCK_FLOATS / 4 + 64.0 * size.candidates)


def _predictions(candidates: Candidates, name: str) -> Tensor:
    if Need.MEMBERS in STRATEGIES[name].needs:
        assert candidates.members is not None
        return candidates.members.detach()
    assert candidates.log_probs is not None
    return candidates.log_probs.detach().unsqueeze(0)


def _scores(function: Callable[[Tensor], Tensor], log_probs: Tensor) -> Scores:
    n_members, n, n_classes = log_probs.shape
    parts = [function(log_probs[:, start:stop]) for start, stop in blocks(n, n_members * n_classes)]
    return torch.cat(parts).double().numpy() if parts else np.empty(0)


def _highest(name: str) -> Strategy:
    def choose(candidates: Candidates, k: int, seed: int) -> Choice:
        predictions = _predictions(candidates, name)
        scores = _scores(_FUNCTIONS[name], predictions)
        if name == "variation-ratio":
            # It takes few values, so ties are the rule.
            second = _scores(uncertainty.predictive_entropy, predictions)
            positions = np.lexsort((candidates.keys, -second, -scores))[:k]
        else:
            positions = top_k(scores, candidates.keys, k)
        return Choice(positions, scores[positions])

    choose.__doc__ = f"The k images with the highest score: {STRATEGIES[name].summary}."
    return in_key_order(*STRATEGIES[name].needs)(choose)


METHODS: Mapping[str, tuple[Strategy, Callable[[Size], Cost]]] = {
    **{name: (_highest(name), functools.partial(cost, 1)) for name in ("entropy", "margin", "least-confidence")},
    **{
        name: (_highest(name), lambda size: cost(size.members, size))
        for name in ("expected-entropy", "mutual-information", "variation-ratio")
    },
    "random": (random, lambda size: Cost(2000.0 * size.candidates, 64.0 * size.candidates)),
}
