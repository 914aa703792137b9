"""Two models on the same images: which one is better, or that nobody can tell. Plain arrays."""

import dataclasses
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from alloop.evaluation.intervals import DRAWS, wilson
from alloop.records import Interval

Correct = npt.NDArray[np.bool_]  # [N]: whether a model is right about each image
Verdict = Literal["yes", "no", "cannot tell"]


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """A model against an earlier one.

    Attributes:
        gain: Accuracy of the model minus that of the earlier one, in [-1, 1].
        only_new, only_old: Images that only the one, only the other is right about; the rest says nothing.
        p: McNemar's exact two-sided p-value of "both are equally good".
    """

    gain: Interval
    only_new: int
    only_old: int
    p: float

    @property
    def verdict(self) -> Verdict:
        """Whether the model is better; "no" means worse. Test and interval must agree, each at 5 %."""
        if self.p < 0.05 and self.gain.low > 0:
            return "yes"
        return "no" if self.p < 0.05 and self.gain.high < 0 else "cannot tell"


def compare_paired(new: Correct, old: Correct, generator: np.random.Generator) -> Comparison:
    """Compare two models on the same N images, which neither has seen.

    Raises:
        ValueError: The arrays differ in length.
    """
    if len(new) != len(old):
        raise ValueError(f"{len(new)} images against {len(old)}")
    only_new, only_old = int((new & ~old).sum()), int((old & ~new).sum())
    gain = bootstrap_gain(only_new, only_old, len(new), generator)
    return Comparison(gain, only_new, only_old, mcnemar(only_new, only_old))


def mcnemar(only_new: int, only_old: int) -> float:
    """Two-sided exact p-value in (0, 1]: how often a fair coin splits the discordant images at least this unevenly.

    No discordant image: 1. SciPy's binomtest gives the same, but `alloop status` would wait for its import.

    Source: McNemar (1947), Psychometrika 12(2); exact binomial form.
    """
    n, rarer = only_new + only_old, min(only_new, only_old)
    # The terms fall fast from the middle outwards; in logarithms none of them overflows.
    log_terms = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(rarer + 1)]
    tail = math.fsum(math.exp(term - n * math.log(2)) for term in log_terms)
    return min(1.0, 2 * tail)


def bootstrap_gain(
    only_new: int, only_old: int, n: int, generator: np.random.Generator, draws: int = DRAWS
) -> Interval:
    """Paired percentile bootstrap of the accuracy difference, 95 %.

    Resampling images is resampling their three kinds (only the one right, only the other, both or neither), so a draw
    costs three numbers whatever N is. No images: the value is nan and the interval is [-1, 1].

    Source: Efron & Tibshirani (1993), chapter 13.
    """
    method = "paired bootstrap 95%"
    if n == 0:
        return Interval(math.nan, -1.0, 1.0, 0, method)
    counts = generator.multinomial(n, [only_new / n, only_old / n, (n - only_new - only_old) / n], size=draws)
    gains = (counts[:, 0] - counts[:, 1]) / n
    low, high = np.quantile(gains, [0.025, 0.975])
    if only_new + only_old == 0:
        # Models that never differed here could on other images: Wilson's doubt about a share of none.
        high = wilson(0, n).high
        low = -high
    return Interval((only_new - only_old) / n, float(low), float(high), n, method)


def variance_of_gain(new: Correct, old: Correct) -> float:
    """Sampling variance of the paired accuracy difference; 0 without images."""
    n = len(new)
    if n == 0:
        return 0.0
    difference = new.astype(np.float64) - old.astype(np.float64)
    return float(difference.var() / n)
