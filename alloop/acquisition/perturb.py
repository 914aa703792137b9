"""Perturbed scores: a draw without replacement by the scores, instead of the k highest.

The probability of every draw is known, which unbiased estimates from the labels need.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from alloop.acquisition.strategy import Choice, Keys
from alloop.composition import PERTURBATIONS
from alloop.seeds import derive_seed, mixed


def draw(
    scores: npt.NDArray[np.floating],
    keys: Keys,
    k: int,
    seed: int,
    *,
    kind: str = "power",
    beta: float = 1.0,
    explore: float = 0.0,
) -> Choice:
    """Draw k images one after the other, each with a probability proportional to its weight among those left.

    Weights w are s^beta (power), exp(beta s) (softmax) or rank^-beta (soft-rank, the highest score has rank 1, ties
    ranked by key), and w' = (1 - explore) w / Σ w + explore / N, fixed before the first draw. The k largest
    log w' + Gumbel noise are such a draw. The noise of an image depends on the seed and its key only.

    With power and explore 0, scores of 0 are drawn last, uniformly: no unbiased estimate can be made then.

    Args:
        scores: Finite scores [N]; not negative for power.
        keys: Distinct keys [N].
        k: Number of draws, at most N.
        seed: Seed of the noise.
        kind: Name in `composition.PERTURBATIONS`, except "none".
        beta: Exponent or factor, at least 0. 0 is a uniform draw; large values give the k highest.
        explore: Share of the weight spread evenly, in [0, 1]. Above 0, every image's probability is at least explore /
            N.

    Returns:
        Scores are without the noise. Probabilities are conditional on the earlier draws.

    Raises:
        ValueError: A score is not finite, or negative for power, or the kind is unknown.

    Source: Kirsch et al. (2021), arXiv 2106.12059; docs/acquisition.md sections 7 and 15.
    """
    n = len(scores)
    k = min(max(k, 0), n)
    _check(scores, kind)
    if k == 0:
        return Choice(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))
    log_weights = _mixed_in(_LOG_WEIGHTS[kind](np.asarray(scores, dtype=np.float64), keys, beta), explore)
    noisy = log_weights + gumbel(keys, seed)
    # Images of weight 0 come last, in a random order.
    order = np.lexsort((keys, -gumbel(keys, derive_seed(seed, "fill")), -noisy))
    positions = order[:k].astype(np.int64)
    notes = () if np.isfinite(log_weights).all() else (_ZEROS.format(int(np.isneginf(log_weights).sum()), n),)
    return Choice(positions, np.asarray(scores, dtype=np.float64)[positions], _draws(log_weights, order, k), notes)


def gumbel(keys: Keys, seed: int) -> npt.NDArray[np.float64]:
    """Return standard Gumbel noise [N]. Each number depends only on the seed and its key."""
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform(keys, seed)))
    return noise


def uniform(keys: Keys, seed: int) -> npt.NDArray[np.float64]:
    """Return uniform numbers in (0, 1) [N]. Each depends only on the seed and its key."""
    bits = mixed(mixed(keys ^ np.uint64(derive_seed(seed, "noise"))))
    return (np.asarray(bits >> np.uint64(11), dtype=np.float64) + 0.5) / 2.0**53


_ZEROS = (
    "{} of {} images have a score of 0 and are drawn only if no others are left. [acquisition] explore above 0 changes "
    "that."
)


def _power(scores: npt.NDArray[np.float64], keys: Keys, beta: float) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        logs = np.log(scores)
    # 0 * -inf is nan, and 0^0 is 1.
    return beta * logs if beta > 0 else np.zeros(len(scores))


def _softmax(scores: npt.NDArray[np.float64], keys: Keys, beta: float) -> npt.NDArray[np.float64]:
    return beta * scores


def _soft_rank(scores: npt.NDArray[np.float64], keys: Keys, beta: float) -> npt.NDArray[np.float64]:
    ranks = np.empty(len(scores))
    ranks[np.lexsort((keys, -scores))] = np.arange(1, len(scores) + 1)
    return -beta * np.log(ranks)


# Logarithms of weights [N] by (scores, keys, beta).
_LOG_WEIGHTS: Mapping[str, Callable[[npt.NDArray[np.float64], Keys, float], npt.NDArray[np.float64]]] = {
    "power": _power,
    "softmax": _softmax,
    "soft-rank": _soft_rank,
}


def _mixed_in(log_weights: npt.NDArray[np.float64], explore: float) -> npt.NDArray[np.float64]:
    """Return log((1 - explore) w / Σ w + explore / N); uniform if all weights are 0."""
    n = len(log_weights)
    total = _log_sum(log_weights)
    if total == -math.inf:
        return np.full(n, -math.log(n))
    normalized = log_weights - total
    if explore <= 0:
        return normalized
    if explore >= 1:
        return np.full(n, -math.log(n))
    return np.logaddexp(math.log1p(-explore) + normalized, math.log(explore / n))


def _draws(log_weights: npt.NDArray[np.float64], order: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
    """Return the share of each of the first k images in the weight that was left at its draw."""
    drawn, rest = log_weights[order[:k]], _log_sum(log_weights[order[k:]])
    # Summed from the smallest, because differences from the total would lose the last ones.
    left = np.logaddexp.accumulate(np.concatenate([[rest], drawn[::-1]]))[1:][::-1]
    with np.errstate(invalid="ignore"):
        shares = np.minimum(np.exp(drawn - left), 1)
    uniformly = 1 / (len(order) - np.arange(k))
    return np.where(np.isneginf(drawn), uniformly, shares)


def _log_sum(logs: npt.NDArray[np.float64]) -> float:
    top = logs.max(initial=-math.inf)
    return float(top) if math.isinf(top) else float(top + np.log(np.exp(logs - top).sum()))


def _check(scores: npt.NDArray[np.floating], kind: str) -> None:
    if kind not in _LOG_WEIGHTS:
        raise ValueError(f"there is no perturbation '{kind}'")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(f"the score at position {bad[0]} is not finite")
    negative = np.flatnonzero(scores < 0) if PERTURBATIONS[kind].needs_positive else bad
    if len(negative):
        raise ValueError(f"a {kind} needs scores of at least 0, and the one at position {negative[0]} is negative")
