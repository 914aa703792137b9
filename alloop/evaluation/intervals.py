"""Intervals of measured numbers: Wilson's interval for shares, the bootstrap for all others."""

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from alloop.evaluation.metrics import N_BINS, bin_positions, brier_per_image, nll_per_image, top_confidence
from alloop.records import Interval

DRAWS = 1000
_CELLS = 500_000  # number of resampling weights at once, which fits into a cache
_TABLE = 4_000_000  # largest number of gaps that are kept between resamples

Counts = npt.NDArray[np.float64]  # count of each image in each resample [draws, N]
Statistic = Callable[[Counts], npt.NDArray[np.float64]]  # counts → one value per resample [draws]


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share, such as accuracy. It stays within [0, 1], also at 0 and n successes.

    Without images the value is nan and the interval is [0, 1].
    """
    method = f"wilson {confidence:.0%}"
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0, method)
    share = successes / n
    middle, half = wilson_parts(share, n, confidence)
    # At the ends the bound is exactly 0 or 1, despite rounding.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return Interval(share, low, high, n, method)


def wilson_parts(share: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return middle and half-width of Wilson's interval.

    SciPy's binomtest has the same formula for whole numbers only; an effective sample size need not be whole.

    Args:
        share: Observed share, in [0, 1].
        n: Number of images, above 0.
        confidence: Confidence level, in (0, 1).

    Source: Wilson (1927), equation for the score interval without continuity correction.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    return middle, z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))


def bootstrap_all(
    statistics: Mapping[str, Statistic],
    n: int,
    generator: np.random.Generator,
    draws: int = DRAWS,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals of several statistics over the same resamples of n images with replacement.

    Args:
        statistics: Each computes its value on many resamples at once from how often each image is in each; the value on
            the data as they are is that of all ones.
        n: Number of images. Without any, a value is nan and its interval is [-inf, inf].
        generator: Draws the resamples.
        draws: Number of resamples.
        confidence: In (0, 1).

    Source: Efron & Tibshirani (1993), chapter 13.
    """
    method = f"bootstrap {confidence:.0%}"
    if n == 0:
        return {name: Interval(math.nan, -math.inf, math.inf, 0, method) for name in statistics}
    values: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in statistics}
    step = max(1, _CELLS // n)
    for start in range(0, draws, step):
        counts = _resample(n, min(step, draws - start), generator)
        for name, statistic in statistics.items():
            values[name].append(statistic(counts))
    tail = (1 - confidence) / 2
    intervals = {}
    for name, statistic in statistics.items():
        # Interpolation between two infinite values would give nan.
        low, high = np.quantile(np.concatenate(values[name]), [tail, 1 - tail], method="inverted_cdf")
        intervals[name] = Interval(float(statistic(np.ones((1, n)))[0]), float(low), float(high), n, method)
    return intervals


def _resample(n: int, draws: int, generator: np.random.Generator) -> Counts:
    counts = np.empty((draws, n))
    # One resample at a time, so that its counts stay in a cache.
    for row, drawn in zip(counts, generator.integers(n, size=(draws, n)), strict=True):
        row[:] = np.bincount(drawn, minlength=n)
    return counts


def mean_of(values: npt.NDArray[np.floating]) -> Statistic:
    """Return the statistic for the mean of one number per image [N], such as the NLL. An infinite number gives inf."""
    wide = values.astype(np.float64)
    finite = np.where(np.isfinite(wide), wide, 0.0)
    endless = ~np.isfinite(wide)

    def statistic(counts: Counts) -> npt.NDArray[np.float64]:
        # 0 * inf would be nan for an image that is not in a resample.
        mean = counts @ finite / len(wide)
        return np.where(counts @ endless > 0, np.inf, mean)

    return statistic


def ece_of(probs: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], n_bins: int = N_BINS) -> Statistic:
    """Expected calibration error of the top class, Σ_b n_b / N |accuracy_b - confidence_b|, in [0, 1].

    It is biased upwards by about sqrt(n_bins / N). Source: Naeini et al. (2015), Guo et al. (2017).
    """
    confidence = top_confidence(probs)
    gap = (probs.argmax(axis=1) == labels) - confidence
    per_bin = np.zeros((len(gap), n_bins))
    per_bin[np.arange(len(gap)), bin_positions(confidence, np.linspace(0, 1, n_bins + 1))] = gap
    return lambda counts: np.asarray(np.abs(counts @ per_bin).sum(axis=1) / len(gap))


def mce_of(probs: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], n_bins: int = N_BINS) -> Statistic:
    """Greatest calibration error of a bin, in [0, 1]. One image alone in a bin can decide it: expect wide intervals.

    Source: Naeini et al. (2015).
    """
    confidence = top_confidence(probs)
    gap = (probs.argmax(axis=1) == labels) - confidence
    member = np.zeros((len(gap), n_bins))
    member[np.arange(len(gap)), bin_positions(confidence, np.linspace(0, 1, n_bins + 1))] = 1

    def statistic(counts: Counts) -> npt.NDArray[np.float64]:
        filled = counts @ member
        # Empty bins have a total of 0, which is the greatest only if all are 0.
        return np.asarray((np.abs(counts @ (member * gap[:, None])) / np.maximum(filled, 1)).max(axis=1))

    return statistic


def adaptive_ece_of(
    probs: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], n_bins: int = N_BINS
) -> Statistic:
    """ECE over bins with equally many images: quantiles (linearly interpolated) of the confidence, right-closed.

    The quantiles are those of each resample. Equal ones are merged; the lowest confidence belongs to the first bin.
    Images are sorted once: the k-th smallest confidence of a resample is where its running counts first exceed k.
    Source: docs/methods.md section 8.2.
    """
    confidence = top_confidence(probs)
    order = np.argsort(confidence, kind="stable")
    sure = confidence[order]
    gap = ((probs.argmax(axis=1) == labels) - confidence)[order]
    places = np.linspace(0, 1, n_bins + 1) * (len(sure) - 1)
    share = places - np.floor(places)

    def statistic(counts: Counts) -> npt.NDArray[np.float64]:
        ordered = counts[:, order]
        running = ordered.cumsum(axis=1)
        # Each row of counts ends below the beginning of the next one, so one search serves all rows.
        first = np.arange(len(counts))[:, None] * (len(sure) + 1.0)
        rows = np.arange(len(counts))[:, None] * len(sure)

        def kth(k: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return sure[np.searchsorted((running + first).ravel(), first + k, side="right") - rows]

        low, high = kth(np.floor(places)), kth(np.ceil(places))
        edges = np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))
        # Sums between the right ends of bins. Equal edges have nothing between them; with equal confidences there is
        # one bin.
        ends = np.where(edges == edges[:, :1], 0, np.searchsorted(sure, edges, side="right"))
        ends[:, -1] = len(sure)
        totals = np.pad((ordered * gap).cumsum(axis=1), ((0, 0), (1, 0)))
        return np.asarray(np.abs(np.diff(np.take_along_axis(totals, ends, axis=1))).sum(axis=1) / len(sure))

    return statistic


def classwise_ece_of(
    probs: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], n_bins: int = N_BINS
) -> Statistic:
    """Mean over all K classes of the calibration error of p_k against [y = k]; biased upwards like `ece_of`.

    Compare at equal K only. Source: docs/methods.md section 8.2.
    """
    edges = np.linspace(0, 1, n_bins + 1)
    columns = probs.astype(np.float64).T

    def gaps(first: int, last: int) -> npt.NDArray[np.float64]:
        per_bin = np.zeros((len(labels), last - first, n_bins))
        for k in range(first, last):
            per_bin[np.arange(len(labels)), k - first, bin_positions(columns[k], edges)] = (labels == k) - columns[k]
        return per_bin.reshape(len(labels), -1)

    step = max(
        1, _TABLE // (len(labels) * n_bins)
    )  # number of classes at a time, since all K of many images would not fit in memory
    whole = gaps(0, len(columns)) if step >= len(columns) else None

    def statistic(counts: Counts) -> npt.NDArray[np.float64]:
        total = np.zeros(len(counts))
        for k in range(0, len(columns), step):
            per_bin = gaps(k, min(k + step, len(columns))) if whole is None else whole
            total += np.abs(counts @ per_bin).sum(axis=1)
        return np.asarray(total / (len(labels) * len(columns)))

    return statistic


def statistics_of(log_probs: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> dict[str, Statistic]:
    """Return the statistics of predictions [N, K]: nll, brier, ece, mce, adaptive_ece, classwise_ece."""
    probs = np.exp(log_probs.astype(np.float64))
    return {
        "nll": mean_of(nll_per_image(log_probs, labels)),
        "brier": mean_of(brier_per_image(probs, labels)),
        "ece": ece_of(probs, labels),
        "mce": mce_of(probs, labels),
        "adaptive_ece": adaptive_ece_of(probs, labels),
        "classwise_ece": classwise_ece_of(probs, labels),
    }
