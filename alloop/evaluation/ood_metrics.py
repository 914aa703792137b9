"""Metrics of out-of-distribution scores. Higher scores mean: more likely out of distribution.

The positive class is "out" unless a name says otherwise. Ties are never split.

Source of all definitions: docs/methods.md section 9.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from alloop.records import Interval

Scores = npt.NDArray[np.floating]
Counts = npt.NDArray[np.float64]  # number of images with each distinct score
TARGET = 0.95
NAMES = ("auroc", "fpr95", "fpr95_id", "aupr_out", "aupr_in")


@dataclasses.dataclass(frozen=True, slots=True)
class OodMetrics:
    """Detection of `n_ood` images among `n_id` others.

    Attributes:
        auroc: Area under the ROC curve, P(s_ood > s_id) + P(equal) / 2.
        fpr95: Share of in-distribution images flagged at a threshold that flags at least 95 % of the others.
        fpr95_id: Share of the others accepted at a threshold that accepts at least 95 % of in-distribution images. The
            papers of LogitNorm, ODIN and energy report this number, OpenOOD reports `fpr95`.
        aupr_out, aupr_in: Average precision with "out" or "in" as the positive class; depends on n_id : n_ood.
        n_id, n_ood: Numbers of images.
    """

    auroc: float
    fpr95: float
    fpr95_id: float
    aupr_out: float
    aupr_in: float
    n_id: int
    n_ood: int


def measure_ood(id_scores: Scores, ood_scores: Scores) -> OodMetrics:
    """Compute all of `OodMetrics`.

    Raises:
        ValueError: A set is empty, or a score is nan; names its position.
    """
    inside, outside = _check(id_scores, "in-distribution"), _check(ood_scores, "out-of-distribution")
    return _measure(*_count(inside, outside))


def ood_intervals(
    id_scores: Scores,
    ood_scores: Scores,
    generator: np.random.Generator,
    draws: int = 1000,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Return a percentile bootstrap interval of each number of `OodMetrics`. Both sets are resampled separately.

    Raises:
        ValueError: As in `measure_ood`.
    """
    inside, outside = _check(id_scores, "in-distribution"), _check(ood_scores, "out-of-distribution")
    counts = _count(inside, outside)
    measured = _measure(*counts)
    groups = [np.repeat(np.arange(len(count)), count.astype(np.int64)) for count in counts]
    resampled = [
        _measure(*(np.bincount(generator.choice(g, len(g)), minlength=len(counts[0])).astype(float) for g in groups))
        for _ in range(draws)
    ]
    tail = (1 - confidence) / 2
    intervals = {}
    for name in NAMES:
        low, high = np.quantile([getattr(draw, name) for draw in resampled], [tail, 1 - tail], method="inverted_cdf")
        n = len(inside) + len(outside)
        value = getattr(measured, name)
        intervals[name] = Interval(value, float(low), float(high), n, f"bootstrap {confidence:.0%}")
    return intervals


def _count(inside: Scores, outside: Scores) -> tuple[Counts, Counts]:
    """Count the images of each set with each distinct score, in ascending order."""
    values, groups = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    return (
        np.bincount(groups[: len(inside)], minlength=len(values)).astype(np.float64),
        np.bincount(groups[len(inside) :], minlength=len(values)).astype(np.float64),
    )


def _measure(inside: Counts, outside: Counts) -> OodMetrics:
    return OodMetrics(
        auroc=_auroc(inside, outside),
        fpr95=_false_positive_rate(outside[::-1], inside[::-1]),
        fpr95_id=_false_positive_rate(inside, outside),
        aupr_out=_average_precision(outside[::-1], inside[::-1]),
        aupr_in=_average_precision(inside, outside),
        n_id=int(inside.sum()),
        n_ood=int(outside.sum()),
    )


def _auroc(inside: Counts, outside: Counts) -> float:
    """Return the area under the ROC curve, as the Mann-Whitney statistic; 0.5 for a constant score."""
    below = inside.cumsum() - inside / 2
    return float((outside * below).sum() / (inside.sum() * outside.sum()))


def _false_positive_rate(positive: Counts, negative: Counts) -> float:
    """Return the smallest false positive rate among the thresholds that keep at least 95 % of the positives.

    Thresholds are scores that occur. Counts begin with the score that is flagged first.
    """
    # Rates only grow, so the first sufficient threshold has the smallest false positive rate.
    enough = positive.cumsum() / positive.sum() >= TARGET
    return float(negative.cumsum()[enough.argmax()] / negative.sum())


def _average_precision(positive: Counts, negative: Counts) -> float:
    """Return Σ (recall step) * precision. Trapezoids would be optimistic with ties.

    Counts begin with the score that is flagged first.
    """
    hits = positive.cumsum()
    flagged = np.maximum(hits + negative.cumsum(), 1)  # at least 1, for scores that no image of a resample has
    return float((positive * hits / flagged).sum() / positive.sum())


def _check(scores: Scores, name: str) -> npt.NDArray[np.float64]:
    wide = np.asarray(scores, dtype=np.float64)
    if not len(wide):
        raise ValueError(f"there are no {name} images")
    if np.isnan(wide).any():
        raise ValueError(f"the {name} score at position {int(np.isnan(wide).argmax())} is not a number")
    return wide
