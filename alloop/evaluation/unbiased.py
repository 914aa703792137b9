"""Estimates from labels that a strategy drew with known probabilities: LURE weights undo its preference."""

import dataclasses
import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from alloop.evaluation.intervals import wilson_parts
from alloop.records import Interval

SMALLEST = 50  # effective sample size below which no number is shown (docs/acquisition.md section 15)
Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Risk:
    """Estimate of a mean loss over the pool that was drawn from.

    Attributes:
        interval: 95 % interval; None if the effective sample is smaller than 50.
        effective: Effective sample size (Σ v)² / Σ v² of the labels, in images.
        drawn: Number of drawn images.
        answered: Number of drawn images with a label; the others are taken to be missing at random.
        pool: Number of images they were drawn from.
    """

    interval: Interval | None
    effective: float
    drawn: int
    answered: int
    pool: int


def lure_weights(draw_probs: Array, pool: int) -> Array:
    """Return the weights v_m [M] of sequential draws without replacement; all 1 for uniform draws or a whole pool.

    v_m = 1 + (N - M) / (N - m) * (1 / ((N - m + 1) q_m) - 1), and 1 at m = N.

    Args:
        draw_probs: Probabilities q_m [M] in the order drawn: that of the m-th drawn image, given the earlier draws.
        pool: Number of images N before the first draw.

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
    left = np.maximum(N - m, 1.0)  # at m = N, M = N, and the factor N - M is 0
    weights = 1 + (N - M) / left * (1 / ((N - m + 1) * draw_probs) - 1)
    return np.where(m == N, 1.0, weights)


def effective_size(weights: Array) -> float:
    """Return (Σ v)² / Σ v²: the number of uniformly drawn images that would be as informative; 0 without any."""
    total = float((weights**2).sum())
    return float(weights.sum()) ** 2 / total if total else 0.0


def lure_risk(draw_probs: Array, losses: Array, pool: int, smallest: float = SMALLEST) -> Risk:
    """Estimate the mean loss of a fixed model over the pool from drawn images that it was not trained on.

    With all labels it is (1/M) Σ v_m loss_m, which is unbiased for every strategy. The interval is the wider one of
    two: the normal one with variance var(v loss) / M, and, for losses of 0 and 1, Wilson's with the effective sample
    size, which does not shrink to a point without mistakes.

    Args:
        draw_probs: Probabilities q_m [M] in the order drawn.
        losses: Losses [M] in [0, 1]; nan without a label.
        pool: Number of images N.
        smallest: Effective sample size below which there is no estimate.
    """
    weights = lure_weights(draw_probs, pool)
    known = np.isfinite(losses)
    weighted = (weights * losses)[known]
    n, effective = int(known.sum()), effective_size(weights[known])
    if n == 0 or effective < smallest:
        return Risk(None, effective, len(losses), n, pool)
    risk = float(weighted.mean())
    z = NormalDist().inv_cdf(0.975)
    # Finite population correction: drawing the whole pool leaves nothing to chance.
    spread = math.sqrt(float(weighted.var(ddof=1)) / n * max(0.0, 1 - n / pool)) if n > 1 else 1.0
    middle, half = wilson_parts(min(max(risk, 0.0), 1.0), effective)
    low, high = min(risk - z * spread, middle - half), max(risk + z * spread, middle + half)
    interval = Interval(risk, max(0.0, low), min(1.0, high), round(effective), "lure 95%")
    return Risk(interval, effective, len(losses), n, pool)
