"""How well a score tells images out of distribution from those in it. Larger scores mean: more likely out.

The positive class is "out" unless a name says otherwise. Equal scores are never split.

Source of all definitions: docs/methods.md section 9.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from alloop.records import Interval

Scores = npt.NDArray[np.floating]
Counts = npt.NDArray[np.float64]  # images, by distinct score
TARGET = 0.95
NAMES = ("auroc", "fpr95", "fpr95_id", "aupr_out", "aupr_in")


@dataclasses.dataclass(frozen=True, slots=True)
class OodMetrics:
    """Detection of `n_ood` images among `n_id` others.

    Attributes:
        auroc: P(s_ood > s_id) + P(equal) / 2.
        fpr95: Share of in-distribution images flagged where at least 95 % of the others are.
        fpr95_id: Share of the others accepted where at least 95 % of in-distribution images are. Papers differ in which
            of the two they mean: LogitNorm, ODIN and energy report this one, OpenOOD the other.
        aupr_out, aupr_in: Average precision with "out" or "in" as the positive class; depends on n_id : n_ood.
        n_id, n_ood: Images.
    """

    auroc: float
    fpr95: float
    fpr95_id: float
    aupr_out: float
    aupr_in: float
    n_id: int
    n_ood: int


def measure_ood(id_scores: Scores, ood_scores: Scores) -> OodMetrics:
    """All of `OodMetrics` at once.

    Raises:
        ValueError: An empty set, or a score that is nan; names its position.
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
    """Percentile bootstrap of every number of `OodMetrics`, by its name; both sets are resampled by themselves.

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
    """How many images of each set have each of the distinct scores, from the lowest up."""
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
    """Area under the ROC curve, as the Mann-Whitney statistic; 0.5 for a constant score."""
    below = inside.cumsum() - inside / 2
    return float((outside * below).sum() / (inside.sum() * outside.sum()))


def _false_positive_rate(positive: Counts, negative: Counts) -> float:
    """Smallest false positive rate among the thresholds that keep at least 95 % of the positives.

    Thresholds are scores that occur. Counts begin with the score that is flagged first.
    """
    # Rates only grow: the first threshold that is enough has the smallest false positive rate.
    enough = positive.cumsum() / positive.sum() >= TARGET
    return float(negative.cumsum()[enough.argmax()] / negative.sum())


def _average_precision(positive: Counts, negative: Counts) -> float:
    """Σ (recall step) * precision, step-wise: trapezoids are optimistic where scores are equal.

    Counts begin with the score that is flagged first.
    """
    hits = positive.cumsum()
    flagged = np.maximum(hits + negative.cumsum(), 1)  # a score that no image of a resample has
    return float((positive * hits / flagged).sum() / positive.sum())


def _check(scores: Scores, name: str) -> npt.NDArray[np.float64]:
    wide = np.asarray(scores, dtype=np.float64)
    if not len(wide):
        raise ValueError(f"there are no {name} images")
    if np.isnan(wide).any():
        raise ValueError(f"the {name} score at position {int(np.isnan(wide).argmax())} is not a number")
    return wide
