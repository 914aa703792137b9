"""Comparison of an acquired and a random arm of equally many labels, with the luck of labels and holdout."""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from alloop.evaluation.intervals import wilson
from alloop.evaluation.paired import variance_of_gain
from alloop.records import Interval

GROUPS = 5  # groups of an arm's labels; each is left out once
FEWEST = 20  # smallest number of labels of an arm, without shared ones
POWER = 0.8
SMALLEST_GAIN = 0.01  # smallest gain in accuracy that is looked for
Correct = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Matched:
    """Comparison of the acquired arm with the random one.

    Attributes:
        gain: Accuracy of the acquired arm minus that of the random one.
        labels: Number of labels of each arm, with shared ones.
        own: Number of labels of each arm, without shared ones.
        variance_holdout: Part of the gain's variance that a larger holdout would reduce.
        variance_labels: Part of the gain's variance that more labels of both arms would reduce.
        more: Number of further random labels (holdout and random share, in their present proportion) that would tell a
            gain of `target` from 0 in 4 of 5 cases; 0 if the gain is clear already.
        target: Measured gain, at least 0.01.
        random: Accuracy of the random arm, with Wilson's interval: the luck of its labels is not in it.
    """

    gain: Interval
    labels: int
    own: int
    variance_holdout: float
    variance_labels: float
    more: int
    target: float
    random: Interval

    @property
    def verdict(self) -> Literal["active", "random", "cannot tell"]:
        if self.gain.low > 0:
            return "active"
        return "random" if self.gain.high < 0 else "cannot tell"


def match(
    active: Correct,
    random: Correct,
    active_without: Sequence[Correct],
    random_without: Sequence[Correct],
    labels: int,
    own: int,
) -> Matched:
    """Compare the arms on the same holdout.

    The variance of the gain is the variance of a paired difference on a sample of images, plus for each arm the
    delete-a-group jackknife over its own labels. The interval is Student's, with Satterthwaite's degrees of freedom.

    Args:
        active: True for each holdout image [N] that the model of the whole acquired arm predicts right; N >= 2.
        random: The same for the random arm.
        active_without: The same for models of the acquired arm without one of its groups of labels [G][N].
        random_without: The same for the random arm.
        labels: Number of labels of each arm.
        own: Number of labels of each arm, without shared ones.

    Source: jackknife: Kott (2001), The Delete-a-Group Jackknife; degrees of freedom: Satterthwaite (1946).
    """
    n = len(active)
    gain = float(active.mean() - random.mean())
    holdout = max(variance_of_gain(active, random), 1 / n**2)  # arms that never differ could differ on the next image
    arms = [_jackknife(active_without), _jackknife(random_without)]
    total = holdout + sum(arms)
    degrees = _degrees([(holdout, n - 1), *((part, GROUPS - 1) for part in arms)])
    half = float(stdtrit(degrees, 0.975)) * math.sqrt(total)  # Student's t
    target = max(abs(gain), SMALLEST_GAIN)
    wanted = (target / (NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(POWER))) ** 2
    is_told = gain - half > 0 or gain + half < 0
    more = 0 if is_told else math.ceil(max(0.0, total / wanted - 1) * (n + own))
    interval = Interval(gain, max(-1.0, gain - half), min(1.0, gain + half), n, "matched arms 95%")
    return Matched(interval, labels, own, holdout, sum(arms), more, target, wilson(int(random.sum()), n))


def _jackknife(without: Sequence[Correct]) -> float:
    """Return (G - 1) / G Σ_g (accuracy without group g - their mean)²."""
    accuracies = np.array([one.mean() for one in without])
    return float((len(accuracies) - 1) / len(accuracies) * ((accuracies - accuracies.mean()) ** 2).sum())


def _degrees(parts: Sequence[tuple[float, int]]) -> float:
    """Return Satterthwaite's degrees of freedom of a sum of variances; many where all of them are 0."""
    total = sum(variance for variance, _ in parts)
    below = sum(variance**2 / max(1, df) for variance, df in parts)
    return total**2 / below if below else 1e6
