"""Risk from labels that a strategy drew: LURE weights undo the preference, where the draw's probabilities are known."""

import dataclasses
import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from alloop.evaluation.intervals import wilson_parts
from alloop.records import Interval

SMALLEST = 50  # effective sample size below which no number is quoted (docs/acquisition.md section 15)
Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Risk:
    """An estimate of a mean loss over the pool that was drawn from.

    Attributes:
        interval: 95 %; None where the effective sample is smaller than 50.
        effective: (Σ v)² / Σ v² of the labels that came, in images.
        drawn: How many images were drawn.
        answered: How many of them have a label; the others are taken to be missing at random.
        pool: From how many they were drawn.
    """

    interval: Interval | None
    effective: float
    drawn: int
    answered: int
    pool: int


def lure_weights(draw_probs: Array, pool: int) -> Array:
    """Weights v_m [M] of sequential draws without replacement; 1 each for a uniform draw and for a whole pool.

    v_m = 1 + (N - M) / (N - m) * (1 / ((N - m + 1) q_m) - 1), and 1 at m = N.

    Args:
        draw_probs: q_m [M], in the order drawn: the probability, given the draws before, of the image drawn m-th.
        pool: N, images there were before the first draw.

    Raises:
        ValueError: A probability is not in (0, 1], or more were drawn than there were.

    Source: Farquhar, Gal & Rainforth (2021), On Statistical Bias in Active Learning, equation for R_LURE.
    """
    M, N = len(draw_probs), pool
    if M > N:
        raise ValueError(f"{M} draws from {N} images")
    if not bool(np.all((draw_probs > 0) & (draw_probs <= 1))):
        raise ValueError("draw probabilities must lie in (0, 1]")
    m = np.arange(1, M + 1, dtype=np.float64)
    left = np.maximum(N - m, 1.0)  # at m = N the factor before it is 0: M = N then
    weights = 1 + (N - M) / left * (1 / ((N - m + 1) * draw_probs) - 1)
    return np.where(m == N, 1.0, weights)


def effective_size(weights: Array) -> float:
    """(Σ v)² / Σ v²: how many uniformly drawn images would be as informative; 0 without any."""
    total = float((weights**2).sum())
    return float(weights.sum()) ** 2 / total if total else 0.0


def lure_risk(draw_probs: Array, losses: Array, pool: int, smallest: float = SMALLEST) -> Risk:
    """Mean loss of a fixed model over the pool, from images that it was not trained on.

    With every label it is (1/M) Σ v_m loss_m, unbiased whatever the strategy preferred. The interval is the wider of
    two: the normal one with variance var(v loss) / M, and for losses of 0 and 1 Wilson's with the effective sample
    size, which does not collapse where no mistake was seen.

    Args:
        draw_probs: q_m [M] in the order drawn.
        losses: [M] in [0, 1]; nan where no label came.
        pool: N.
        smallest: Effective sample size below which there is no number.
    """
    weights = lure_weights(draw_probs, pool)
    known = np.isfinite(losses)
    weighted = (weights * losses)[known]
    n, effective = int(known.sum()), effective_size(weights[known])
    if n == 0 or effective < smallest:
        return Risk(None, effective, len(losses), n, pool)
    risk = float(weighted.mean())
    z = NormalDist().inv_cdf(0.975)
    # What was drawn of a finite pool is known: drawing all of it leaves nothing to chance.
    spread = math.sqrt(float(weighted.var(ddof=1)) / n * max(0.0, 1 - n / pool)) if n > 1 else 1.0
    middle, half = wilson_parts(min(max(risk, 0.0), 1.0), effective)
    low, high = min(risk - z * spread, middle - half), max(risk + z * spread, middle + half)
    interval = Interval(risk, max(0.0, low), min(1.0, high), round(effective), "lure 95%")
    return Risk(interval, effective, len(losses), n, pool)
