"""Functions of the strategies that choose a batch as a whole, by name, here or in another installed package."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from alloop.acquisition import (
    badge,
    batchbald,
    cluster_margin,
    coverage,
    dropquery,
    kcenter,
    scores,
    spread,
    typiclust,
)
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size, Strategy
from alloop.composition import STRATEGY_GROUP, check_strategy_name, strategy_name
from alloop.errors import ConfigError
from alloop.plugins import load_named, package_of

OPERATIONS_PER_SECOND = 1e10  # operations of one core, a cautious number; costs are right within a factor of 3

METHODS: Mapping[str, tuple[Strategy, Callable[[Size], Cost]]] = {
    "badge": (badge.badge, badge.cost),
    "batchbald": (batchbald.batchbald, batchbald.cost),
    "cluster-margin": (cluster_margin.cluster_margin, cluster_margin.cost),
    "entropy-spread": (spread.entropy_spread, spread.cost),
    "dropquery": (dropquery.dropquery, dropquery.cost),
    "k-center": (kcenter.k_center, kcenter.cost),
    "max-herding": (coverage.max_herding, coverage.herding_cost),
    "probcover": (coverage.probcover, coverage.probcover_cost),
    "typiclust": (typiclust.typiclust, typiclust.cost),
    "uherding": (coverage.uherding, coverage.uherding_cost),
}


def find_strategy(name: str) -> Strategy:
    """Return the function of a strategy that chooses a batch as a whole; one of another package is imported.

    Raises:
        ValueError: No such strategy has this name, aliases included; names the nearest.
        ConfigError: A strategy of another package cannot be imported, or is not a function.
    """
    known = strategy_name(name)
    return METHODS[known][0] if known in METHODS else _installed(known)


def estimate(name: str, size: Size) -> Cost:
    """Estimate what a selection takes on the CPU.

    Bytes are an upper bound. Operations are scaled so that a core does `OPERATIONS_PER_SECOND`; reading memory counts
    for more than computing. A strategy of another package may have an attribute `cost`; otherwise its cost is 0.

    Raises:
        ValueError, ConfigError: As in `find_strategy`.
    """
    known = strategy_name(name)
    if known in scores.SCORES:
        return scores.cost(size)
    if known in METHODS:
        return METHODS[known][1](size)
    cost: Callable[[Size], Cost] | None = getattr(_installed(known), "cost", None)
    return Cost(0.0, 0.0) if cost is None else cost(size)


def choose(name: str, candidates: Candidates, k: int, seed: int) -> Choice:
    """Choose a batch and check the choice.

    Args:
        name: Name of the strategy as written; aliases count.
        candidates: Candidates with the parts that the strategy needs.
        k: Fewer are returned if there are fewer candidates.
        seed: Seed of the round; every strategy derives its own streams.

    Raises:
        ValueError: As in `find_strategy`; candidates that the strategy cannot work with.
        ConfigError: As in `find_strategy`; the strategy broke its contract.
    """
    known = strategy_name(name)
    choice = find_strategy(known)(candidates, k, seed)
    return _checked(known, choice, min(max(k, 0), len(candidates)), len(candidates))


def _installed(name: str) -> Strategy:
    try:
        function = load_named("strategy", name, STRATEGY_GROUP, {}, "set another [acquisition] strategy")
    except KeyError:
        check_strategy_name(name)
        raise ValueError(f"the strategy {name} does not choose a batch as a whole") from None
    if not callable(function):
        raise ConfigError(
            f"the strategy {name} of the package {package_of(name, STRATEGY_GROUP)} is not a function",
            "It must take candidates, k and a seed, and return a Choice.",
        )
    return function


def _checked(name: str, choice: Choice, k: int, n: int) -> Choice:
    positions = np.asarray(choice.positions)
    wrong = ""
    if positions.shape != (k,) or np.shape(choice.scores) != (k,):
        wrong = f"chose {positions.size} images, with {np.size(choice.scores)} scores, instead of {k}"
    elif k and (positions.min() < 0 or positions.max() >= n):
        wrong = f"chose an image that is not among the {n} candidates"
    elif len(np.unique(positions)) < k:
        wrong = "chose an image twice"
    elif not np.isfinite(choice.scores).all():
        wrong = "gave a score that is not finite"
    elif choice.probabilities is not None and not _are_probabilities(choice, k):
        wrong = "gave probabilities that are not above 0 and at most 1, one for each image"
    if wrong:
        raise ConfigError(f"the strategy {name} {wrong}.", "Set another [acquisition] strategy.")
    return dataclasses.replace(choice, positions=positions.astype(np.int64))


def _are_probabilities(choice: Choice, k: int) -> bool:
    probabilities = np.asarray(choice.probabilities)
    return probabilities.shape == (k,) and bool(((probabilities > 0) & (probabilities <= 1)).all())
