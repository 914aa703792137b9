"""Learning curve as a power law: expected gain of the next round and of doubling the labels, with intervals."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alloop.records import CurvePoint, Interval

FEWEST = 3  # smallest number of different label counts
DRAWS = 1000
POWERS = np.array([0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0])
Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Power law error(n) = a + b * (n / n_0)^-c, with refits to resampled points.

    Attributes:
        n_points: Number of rounds it was fitted to.
        unit: Smallest number of labels n_0.
        fitted: Parameters (a, b, c) [3].
        resampled: Parameters of the refits [draws, 3].
    """

    n_points: int
    unit: float
    fitted: Array
    resampled: Array

    def gain(self, before: float, after: float) -> Interval:
        """Return the expected gain in accuracy from `before` to `after` labels, with percentiles of the refits."""
        gains = self._error(self.resampled, before) - self._error(self.resampled, after)
        low, high = np.quantile(gains, [0.025, 0.975])
        value = float((self._error(self.fitted[None], before) - self._error(self.fitted[None], after))[0])
        return Interval(value, float(low), float(high), self.n_points, "power law 95%")

    def _error(self, laws: Array, n: float) -> Array:
        return np.asarray(laws[:, 0] + laws[:, 1] * (n / self.unit) ** -laws[:, 2])


def fit_curve(
    points: Sequence[CurvePoint], generator: np.random.Generator, covariance: Array | None = None
) -> Curve | None:
    """Fit the law to measured accuracies, weighted by their intervals; None with fewer than 3 label counts.

    The interval comes from a parametric bootstrap: points are drawn around the fitted curve and fitted again. Their
    noise is that of the measurement, plus the further scatter of the points about the curve (the luck of the labels).

    Args:
        points: Points in any order.
        generator: Generator of the resampled points.
        covariance: Covariance of the accuracies [P, P] in the order of the points. Rounds measured on the same holdout
            err together, which hardly changes the slope of the curve. None: every round is treated as if it had its
            own holdout, and intervals are too wide.

    Source: Hestness et al. (2017), Deep Learning Scaling is Predictable, section 2; bootstrap: Efron & Tibshirani
    (1993), chapter 6.5.
    """
    n = np.array([point.n_labels for point in points], dtype=np.float64)
    if len(np.unique(n)) < FEWEST:
        return None
    errors = np.array([1 - point.accuracy.value for point in points])
    deviation = np.array([max(1e-4, (p.accuracy.high - p.accuracy.low) / (2 * 1.959964)) for p in points])
    noise = np.diag(deviation**2) if covariance is None else covariance
    unit, weights = float(n.min()), 1 / deviation**2
    x = (n / unit)[:, None] ** -POWERS  # [P, C]
    fitted = _solve(errors[None], x, weights)[0]
    smooth = fitted[0] + fitted[1] * (n / unit) ** -fitted[2]
    scatter = float(((errors - smooth) ** 2).sum() / max(1, len(n) - 2))
    root = _root(noise + scatter * np.eye(len(n)))
    draws = smooth + generator.standard_normal((DRAWS, len(n))) @ root.T
    # Points and refits may leave [0, 1]; clipping near the ends would look like certainty.
    return Curve(len(points), unit, fitted, _solve(draws, x, weights, least=-np.inf))


def covariance_of(correct: npt.NDArray[np.bool_]) -> Array:
    """Return the covariance [P, P] of the accuracies of P models on the same N >= 1 images; correct is [P, N].

    The variance of one more image is added to each model, since models that never differed here could differ elsewhere.
    """
    n = correct.shape[1]
    return np.atleast_2d(np.cov(correct.astype(np.float64), bias=True)) / n + np.eye(len(correct)) / n**2


def _solve(errors: Array, x: Array, weights: Array, least: float = 0.0) -> Array:
    """Return the best weighted least squares fit of a + b x_c over the powers c, a >= least. [S, P] → laws [S, 3]."""
    w = weights / weights.sum()
    mean_x, mean_y = w @ x, errors @ w  # [C], [S]
    spread = w @ (x - mean_x) ** 2  # [C]
    slope = (errors * w) @ (x - mean_x) / spread  # [S, C]; the deviations of x sum to 0
    offset = mean_y[:, None] - slope * mean_x
    # An error is never negative: a line that would start below 0 goes through 0.
    through = (errors * w) @ x / (w @ x**2)
    slope, offset = np.where(offset < least, through, slope), np.maximum(offset, least)
    misses = np.stack([((errors - offset[:, [c]] - slope[:, [c]] * x[:, c]) ** 2) @ w for c in range(len(POWERS))], 1)
    best = misses.argmin(axis=1)
    rows = np.arange(len(errors))
    return np.stack([offset[rows, best], slope[rows, best], POWERS[best]], axis=1)


def _root(covariance: Array) -> Array:
    """Return A with A Aᵀ = covariance, also for a singular covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
