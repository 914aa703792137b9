"""Paired comparison of two models on the same images. Plain arrays."""

import dataclasses
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from alloop.evaluation.intervals import DRAWS, wilson
from alloop.records import Interval

Correct = npt.NDArray[np.bool_]  # True for each image that a model predicts right [N]
Verdict = Literal["yes", "no", "cannot tell"]


@dataclasses.dataclass(frozen=True, slots=True)
class PairedComparison:
    """Comparison of a model with an earlier one.

    Attributes:
        gain: Accuracy of the model minus that of the earlier one, in [-1, 1].
        only_new, only_old: Number of images that only the new model, or only the old one, predicts right.
        p: McNemar's exact two-sided p-value of "both are equally good".
    """

    gain: Interval
    only_new: int
    only_old: int
    p: float

    @property
    def verdict(self) -> Verdict:
        """Verdict whether the model is better; "no" means worse. Test and interval must agree, each at 5 %."""
        if self.p < 0.05 and self.gain.low > 0:
            return "yes"
        return "no" if self.p < 0.05 and self.gain.high < 0 else "cannot tell"


def compare_paired(new: Correct, old: Correct, generator: np.random.Generator) -> PairedComparison:
    """Compare two models on the same N images, which neither was trained on.

    Raises:
        ValueError: The arrays differ in length.
    """
    if len(new) != len(old):
        raise ValueError(f"{len(new)} images against {len(old)}")
    only_new, only_old = int((new & ~old).sum()), int((old & ~new).sum())
    gain = bootstrap_gain(only_new, only_old, len(new), generator)
    return PairedComparison(gain, only_new, only_old, mcnemar(only_new, only_old))


def mcnemar(only_new: int, only_old: int) -> float:
    """Return the two-sided exact p-value: probability that a fair coin splits discordant images at least this unevenly.

    Without discordant images it is 1. SciPy's binomtest gives the same, but its import would slow down `alloop status`.

    Source: McNemar (1947), Psychometrika 12(2); exact binomial form.
    """
    n, rarer = only_new + only_old, min(only_new, only_old)
    # Logarithms do not overflow.
    log_terms = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(rarer + 1)]
    tail = math.fsum(math.exp(term - n * math.log(2)) for term in log_terms)
    return min(1.0, 2 * tail)


def bootstrap_gain(
    only_new: int, only_old: int, n: int, generator: np.random.Generator, draws: int = DRAWS
) -> Interval:
    """Return the paired percentile bootstrap of the accuracy difference, 95 %.

    Resampling images is the same as resampling their three kinds (only the one right, only the other, both or neither),
    so a draw needs three numbers for every N. Without images the value is nan and the interval is [-1, 1].

    Source: Efron & Tibshirani (1993), chapter 13.
    """
    method = "paired bootstrap 95%"
    if n == 0:
        return Interval(math.nan, -1.0, 1.0, 0, method)
    counts = generator.multinomial(n, [only_new / n, only_old / n, (n - only_new - only_old) / n], size=draws)
    gains = (counts[:, 0] - counts[:, 1]) / n
    low, high = np.quantile(gains, [0.025, 0.975])
    if only_new + only_old == 0:
        # Models that never differed here could differ on other images: Wilson's interval of a share of 0.
        high = wilson(0, n).high
        low = -high
    return Interval((only_new - only_old) / n, float(low), float(high), n, method)


def variance_of_gain(new: Correct, old: Correct) -> float:
    """Return the sampling variance of the paired accuracy difference; 0 without images."""
    n = len(new)
    if n == 0:
        return 0.0
    difference = new.astype(np.float64) - old.astype(np.float64)
    return float(difference.var() / n)
