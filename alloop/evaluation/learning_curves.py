"""Comparison of learning curves of strategies that ran with the same seeds."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

Curves = npt.NDArray[np.float64]  # [seeds, budgets]: accuracy of each seed at each number of labels
DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Reached:
    """Number of labels at which a curve reaches a target, with a 95 % interval; infinity if it does not."""

    labels: float
    low: float
    high: float


def area(budgets: npt.NDArray[np.float64], curves: Curves) -> npt.NDArray[np.float64]:
    """Return the mean height of each curve [S, B] between its first and its last budget, by trapezoids.

    With one budget, it is the height at this budget.
    """
    if len(budgets) == 1:
        return curves[:, 0].copy()
    widths = np.diff(budgets)
    heights = (curves[:, 1:] + curves[:, :-1]) / 2
    return np.asarray(heights @ widths / widths.sum(), dtype=np.float64)


def labels_to(budgets: npt.NDArray[np.float64], curve: npt.NDArray[np.float64], target: float) -> float:
    """Return the number of labels at which a curve [B] first reaches a target, linear between budgets; else infinity.

    A curve that starts above the target reached it at its first budget or before, which was not measured.
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
    """Return the number of labels at which the mean curve matches the final value of the reference.

    The interval is a paired bootstrap: seeds are drawn with replacement, the same for both curves, and the target
        varies
    with them. With few seeds it is rough; with one seed it is a point.

    Args:
        budgets: Numbers of labels [B].
        curves: Curves [S, B].
        reference: Reference curves of the same seeds [S, B].
        generator: Generator of the resamples.
    """
    n = len(curves)
    found = labels_to(budgets, curves.mean(axis=0), float(reference[:, -1].mean()))
    draws = generator.integers(n, size=(DRAWS, n))
    resampled = [labels_to(budgets, curves[drawn].mean(axis=0), float(reference[drawn, -1].mean())) for drawn in draws]
    # Interpolation between a number and infinity would give nan.
    low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
    return Reached(found, float(low), float(high))


def wins(curves: Curves, others: Curves) -> float:
    """Return the share of seeds and budgets [S, B] at which one is better than the other. Ties count half."""
    return float(((curves > others) + 0.5 * (curves == others)).mean())


def difference(
    curves: Curves, reference: Curves, generator: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean difference to the reference at each budget [B] with its 95 % interval (bootstrap over seeds)."""
    paired = curves - reference
    draws = generator.integers(len(paired), size=(DRAWS, len(paired)))
    means = paired[draws].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return paired.mean(axis=0), low, high
