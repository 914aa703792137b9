"""How well a score tells images out of distribution from those in it. Larger scores mean: more likely out.

The positive class is "out" unless a name says otherwise. Equal scores are never split.

Source of all definitions: methods.md section 9.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from alloop.records import Interval

Scores = npt.NDArray[np.floating]
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
    return OodMetrics(
        auroc=auroc(inside, outside),
        fpr95=false_positive_rate(outside, inside),
        fpr95_id=false_positive_rate(-inside, -outside),
        aupr_out=average_precision(outside, inside),
        aupr_in=average_precision(-inside, -outside),
        n_id=len(inside),
        n_ood=len(outside),
    )


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
    measured = measure_ood(inside, outside)
    resampled = [
        measure_ood(generator.choice(inside, len(inside)), generator.choice(outside, len(outside)))
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


def auroc(id_scores: Scores, ood_scores: Scores) -> float:
    """Area under the ROC curve, as the Mann-Whitney statistic; 0.5 for a constant score."""
    inside = np.sort(id_scores)
    below = np.searchsorted(inside, ood_scores, side="left")
    not_above = np.searchsorted(inside, ood_scores, side="right")
    return float((below + not_above).sum() / (2 * len(inside) * len(ood_scores)))


def false_positive_rate(positive: Scores, negative: Scores, target: float = TARGET) -> float:
    """Smallest false positive rate among thresholds that keep at least `target` of the positives.

    Args:
        positive: Scores; larger means more likely positive. Thresholds are scores that occur.
        negative: Scores.
        target: In (0, 1].
    """
    true_rate, false_rate, _ = _curve(positive, negative)
    # Rates only grow: the first threshold that is enough has the smallest false positive rate.
    enough = true_rate >= target
    return float(false_rate[enough.argmax()])


def average_precision(positive: Scores, negative: Scores) -> float:
    """Σ (recall step) * precision, step-wise: trapezoids are optimistic where scores are equal."""
    true_rate, _, precision = _curve(positive, negative)
    return float((np.diff(true_rate, prepend=0.0) * precision).sum())


def _curve(
    positive: Scores, negative: Scores
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """True and false positive rate and precision at every distinct score, from the highest down."""
    scores = np.concatenate([positive, negative])
    is_positive = np.repeat([1.0, 0.0], [len(positive), len(negative)])
    values, groups = np.unique(-scores, return_inverse=True)
    hits = np.bincount(groups, is_positive, len(values)).cumsum()
    flagged = np.bincount(groups, minlength=len(values)).cumsum().astype(np.float64)
    return hits / len(positive), (flagged - hits) / len(negative), hits / flagged


def _check(scores: Scores, name: str) -> npt.NDArray[np.float64]:
    wide = np.asarray(scores, dtype=np.float64)
    if not len(wide):
        raise ValueError(f"there are no {name} images")
    if np.isnan(wide).any():
        raise ValueError(f"the {name} score at position {int(np.isnan(wide).argmax())} is not a number")
    return wide
