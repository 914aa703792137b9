"""Thresholds above which a model may label images by itself: arrays of scores in, tested thresholds out.

A promise is a largest share of errors. Thresholds are tested from strict to loose on labeled images that were drawn at
random, and the first one that fails ends the walk, so that no correction for the number of thresholds is needed.

Sources: Angelopoulos, Bates, Candès, Jordan & Lei (2021), Learn then Test, section 2.2 (fixed sequence testing with
binomial p-values); Clopper & Pearson (1934).
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, betaincinv, betaln, gammaln

FEWEST = 50  # labeled holdout images below which nothing is tested
_MOST_GROWTH = 1000.0  # times as many holdout labels as today, beyond which no advice is given

Scores = npt.NDArray[np.float64]
Errors = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Test of one threshold.

    Attributes:
        threshold: Images with a higher score are accepted; -inf accepts all.
        n: Number of accepted holdout images.
        errors: Number of errors among them.
        n_rest: Number of accepted images of the rest, near copies once.
        p_value: Probability of at most so many errors if the promise were broken; see `p_value`.
    """

    threshold: float
    n: int
    errors: int
    n_rest: int
    p_value: float


@dataclasses.dataclass(frozen=True, slots=True)
class Walk:
    """Tests in the order taken, from strict to loose.

    Attributes:
        steps: All tests; all but the last passed.
        accepted: Loosest threshold that passed; None if none did.
    """

    steps: tuple[Step, ...]
    accepted: Step | None


def level_of_look(number: int, confidence: float) -> float:
    """Return the level of the tests of a look: (1 - confidence) / (k (k + 1)) for the k-th look, from 1.

    The sum over all looks is 1 - confidence, so that with this confidence no look makes a false promise.
    """
    if number < 1 or not 0 < confidence < 1:
        raise ValueError(f"look {number} with confidence {confidence}")
    return (1 - confidence) / (number * (number + 1))


def p_value(errors: int, n: int, n_rest: int, max_error: float) -> float:
    """Return the p-value of a broken promise: the larger one of two probabilities of at most so many errors.

    The first is binomial: n images are wrong with probability `max_error` each. It tests the error probability of such
    images. The second counts the images that get a label: if at least m = floor(max_error * n_rest) + 1 of the
    `n_rest` images are wrong, and all n + n_rest images are in random order, it bounds the probability that at most
    `errors` of the wrong ones are among the n. It is the probability that at most `errors` of n images are wrong before
    the m-th error of the rest (negative hypergeometric). For a large rest both are the same; for a small one, a share
    can exceed the promise by chance although the error probability does not.

    Args:
        errors: Number of errors among the accepted holdout images.
        n: Number of accepted holdout images.
        n_rest: Number of accepted images of the rest.
        max_error: Largest share of errors, in (0, 1).
    """
    return max(float(bdtr(errors, n, max_error)), _finite_p_value(errors, n, n_rest, max_error))


def _finite_p_value(errors: int, n: int, n_rest: int, max_error: float) -> float:
    m = math.floor(max_error * n_rest + 1e-9) + 1  # a share that equals the promise keeps it, also after rounding
    if m > n_rest:
        return 0.0  # no number of errors breaks the promise
    j = np.arange(min(errors, n) + 1, dtype=np.float64)
    choose = gammaln(n + 1) - gammaln(j + 1) - gammaln(n - j + 1)
    terms = choose + betaln(m + j, n_rest - m + 1 + n - j) - betaln(m, n_rest - m + 1)
    return min(1.0, float(np.exp(terms).sum()))


def walk(scores: Scores, errors: Errors, rest: Scores, max_error: float, level: float) -> Walk:
    """Test thresholds from strict to loose, and stop at the first that fails.

    The thresholds are fixed by numbers of images alone, before any label is looked at: for 0, 1, 2, … errors, the
    strictest score of a holdout image above which so many errors would pass (for a small rest: up to 1 % of the images
    more); at last all images are accepted. Images
    whose score equals a threshold are not accepted, which leaves those above it a random sample of their kind.

    Args:
        scores: Scores of the labeled holdout images [N]; higher is surer. No holdout label may have shaped them.
        errors: True where the prediction is wrong [N].
        rest: Scores of the images to label [R], near copies once.
        max_error: Largest share of errors, in (0, 1).
        level: Probability of a false promise, in (0, 1).
    """
    if not 0 < max_error < 1 or not 0 < level < 1:
        raise ValueError(f"max_error {max_error} and level {level} must lie in (0, 1)")
    if not (np.isfinite(scores).all() and np.isfinite(rest).all()):
        raise ValueError("a score is not finite")
    steps: list[Step] = []
    accepted = None
    for threshold, n, n_rest in _thresholds(scores, rest, max_error, level):
        wrong = int(errors[scores > threshold].sum())
        step = Step(threshold, n, wrong, n_rest, p_value(wrong, n, n_rest, max_error))
        steps.append(step)
        if step.p_value > level:
            break
        accepted = step
    return Walk(tuple(steps), accepted)


def _thresholds(scores: Scores, rest: Scores, max_error: float, level: float) -> Iterator[tuple[float, int, int]]:
    """Yield (threshold, accepted holdout images, accepted images of the rest), from strict to loose, without labels."""
    borders = np.append(np.unique(scores)[::-1], -np.inf)
    counts = len(scores) - np.searchsorted(np.sort(scores), borders, side="right")
    counts_rest = len(rest) - np.searchsorted(np.sort(rest), borders, side="right")
    at, allowed, last = 0, 0, len(borders) - 1
    while True:
        # The binomial p-value falls with n, so its first threshold is found at once; that of a small rest lies later.
        n_needed = fewest_images(allowed, max_error, level)
        at = max(at, int(np.searchsorted(counts, n_needed)))
        while at < last and p_value(allowed, int(counts[at]), int(counts_rest[at]), max_error) > level:
            at = min(last, at + max(1, int(counts[at]) // 100))
        if at >= last:
            break
        n, n_rest = int(counts[at]), int(counts_rest[at])
        yield float(borders[at]), n, n_rest
        while p_value(allowed, n, n_rest, max_error) <= level:
            allowed += 1
    n, n_rest = int(counts[last]), int(counts_rest[last])
    if allowed > 0 or p_value(0, n, n_rest, max_error) <= level:
        yield float(borders[last]), n, n_rest  # as many errors as before must do for all images


def fewest_images(errors: int, max_error: float, level: float) -> int:
    """Return the smallest number of accepted holdout images that pass with so many errors, for a large rest."""
    low, high = errors, max(errors, 1)
    while bdtr(errors, high, max_error) > level:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bdtr(errors, middle, max_error) > level else (low, middle)
    return high


def labels_missing(scores: Scores, errors: Errors, max_error: float, level: float) -> int | None:
    """Return about how many more holdout labels could let a threshold pass; None if even many could not.

    More labels would have the same share of errors at every score as those that are there. It is advice and no test:
    the best threshold is chosen after looking at the labels.

    Args:
        scores: Scores of the labeled holdout images [N].
        errors: True where the prediction is wrong [N].
        max_error: Largest share of errors, in (0, 1).
        level: Level of the next look.
    """
    n_all = len(scores)
    order = np.argsort(-scores, kind="stable")
    wrong = np.cumsum(errors[order])
    n = np.arange(1, n_all + 1)
    needed = math.inf
    # Within a run of equal numbers of errors, the loosest threshold needs the fewest labels.
    for count in np.unique(wrong):
        last = int(np.flatnonzero(wrong == count)[-1])
        if wrong[last] / n[last] < max_error:
            needed = min(needed, _growth(int(wrong[last]), int(n[last]), max_error, level))
    if needed > _MOST_GROWTH:
        return None
    return max(1, math.ceil(needed * n_all) - n_all)


def _growth(errors: int, n: int, max_error: float, level: float) -> float:
    """Return the factor by which images and errors must grow to pass."""

    def passes(factor: float) -> bool:
        return bool(bdtr(math.ceil(factor * errors - 1e-9), math.floor(factor * n + 1e-9), max_error) <= level)

    if errors == 0:
        return max(1.0, fewest_images(0, max_error, level) / n)
    low, high = 1.0, 1.0
    while not passes(high):
        low, high = high, 1.5 * high
        if high > _MOST_GROWTH:
            return math.inf
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def clopper_pearson(errors: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a share; (0, 1) without images."""
    if n == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if errors == 0 else float(betaincinv(errors, n - errors + 1, tail))
    high = 1.0 if errors == n else float(betaincinv(errors + 1, n - errors, 1 - tail))
    return low, high
