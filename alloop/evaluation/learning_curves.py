"""Learning curves of several strategies, run with the same seeds, against each other."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

Curves = npt.NDArray[np.float64]  # [seeds, budgets]: accuracy of each seed at each number of labels
DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Reached:
    """Labels until a curve reaches a target, with a 95 % interval; infinity: not with the labels there were."""

    labels: float
    low: float
    high: float


def area(budgets: npt.NDArray[np.float64], curves: Curves) -> npt.NDArray[np.float64]:
    """Mean height of each curve [S, B] between its first and its last budget: the trapezoids over their width.

    With one budget it is the height there. Equal heights have an area of that height, whatever the budgets.
    """
    if len(budgets) == 1:
        return curves[:, 0].copy()
    widths = np.diff(budgets)
    heights = (curves[:, 1:] + curves[:, :-1]) / 2
    return np.asarray(heights @ widths / widths.sum(), dtype=np.float64)


def labels_to(budgets: npt.NDArray[np.float64], curve: npt.NDArray[np.float64], target: float) -> float:
    """Where a curve [B] first reaches a target, on a straight line between budgets; infinity if it does not.

    A curve that begins there reached it at its first budget, or before, which nobody measured.
    """
    above = np.flatnonzero(curve >= target)
    if not len(above):
        return math.inf
    place = int(above[0])
    if place == 0:
        return float(budgets[0])
    share = (target - curve[place - 1]) / (curve[place] - curve[place - 1])
    return float(budgets[place - 1] + share * (budgets[place] - budgets[place - 1]))


def labels_to_match(
    budgets: npt.NDArray[np.float64], curves: Curves, reference: Curves, generator: np.random.Generator
) -> Reached:
    """How many labels the mean curve needs until it is as good as the reference at its last budget.

    The interval is of a paired bootstrap: seeds are drawn with replacement, the same for both, and the target is drawn
    with them. With few seeds it is rough; with one it is a point.

    Args:
        budgets: [B].
        curves: [S, B].
        reference: The same seeds [S, B].
        generator: Draws the resamples.
    """
    n = len(curves)
    found = labels_to(budgets, curves.mean(axis=0), float(reference[:, -1].mean()))
    draws = generator.integers(n, size=(DRAWS, n))
    resampled = [labels_to(budgets, curves[drawn].mean(axis=0), float(reference[drawn, -1].mean())) for drawn in draws]
    # No interpolation: between a number and infinity it would give nan.
    low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
    return Reached(found, float(low), float(high))


def wins(curves: Curves, others: Curves) -> float:
    """Share of seeds and budgets [S, B] at which one is better than the other; equal counts half."""
    return float(((curves > others) + 0.5 * (curves == others)).mean())


def difference(
    curves: Curves, reference: Curves, generator: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean difference to the reference at each budget [B], and the ends of its 95 % interval (bootstrap over seeds)."""
    paired = curves - reference
    draws = generator.integers(len(paired), size=(DRAWS, len(paired)))
    means = paired[draws].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return paired.mean(axis=0), low, high
