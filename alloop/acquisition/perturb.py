"""Scores with noise: instead of the k highest a draw without replacement, in which a higher score is likelier.

The probability of every draw is known, which is what unbiased estimates from the labels need.
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
        scores: [N], finite; not negative for power.
        keys: [N], distinct.
        k: At most N are drawn.
        seed: Of the noise.
        kind: Name in `composition.PERTURBATIONS`, except "none".
        beta: At least 0; 0 is uniform, large is the k highest.
        explore: In [0, 1]; above 0 every image's probability is at least explore / N.

    Returns:
        Scores are as given, without the noise; probabilities are given what was drawn before.

    Raises:
        ValueError: A score is not finite, or negative for power; no such kind.

    Source: Kirsch et al. (2021), arXiv 2106.12059; docs/acquisition.md sections 7 and 15.
    """
    n = len(scores)
    k = min(max(k, 0), n)
    _check(scores, kind)
    if k == 0:
        return Choice(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))
    log_weights = _mixed_in(_LOG_WEIGHTS[kind](np.asarray(scores, dtype=np.float64), keys, beta), explore)
    noisy = log_weights + gumbel(keys, seed)
    # Weight 0: after all others, in an order that the seed draws.
    order = np.lexsort((keys, -gumbel(keys, derive_seed(seed, "fill")), -noisy))
    positions = order[:k].astype(np.int64)
    notes = () if np.isfinite(log_weights).all() else (_ZEROS.format(int(np.isneginf(log_weights).sum()), n),)
    return Choice(positions, np.asarray(scores, dtype=np.float64)[positions], _draws(log_weights, order, k), notes)


def gumbel(keys: Keys, seed: int) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise [N], each number from the seed and its key alone."""
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform(keys, seed)))
    return noise


def uniform(keys: Keys, seed: int) -> npt.NDArray[np.float64]:
    """Uniform in (0, 1) [N], each number from the seed and its key alone."""
    bits = mixed(mixed(keys ^ np.uint64(derive_seed(seed, "noise"))))
    return (np.asarray(bits >> np.uint64(11), dtype=np.float64) + 0.5) / 2.0**53


_ZEROS = "{} of {} images have a score of 0 and are drawn only when no others are left; explore above 0 changes that."


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
    """log((1 - explore) w / Σ w + explore / N); uniform where all weights are 0."""
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
    """Each of the first k's share of the weight that was left when it was drawn."""
    drawn, rest = log_weights[order[:k]], _log_sum(log_weights[order[k:]])
    # Added up from the smallest: subtracting from the whole would leave nothing of the last ones.
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
