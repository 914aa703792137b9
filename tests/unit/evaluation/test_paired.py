"""Two models on the same images: McNemar's exact test, the paired bootstrap, the verdict."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from alloop.evaluation.intervals import wilson
from alloop.evaluation.paired import bootstrap_gain, compare_paired, mcnemar, variance_of_gain


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def models(only_new: int, only_old: int, both: int = 0, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    new = [True] * only_new + [False] * only_old + [True] * both + [False] * neither
    old = [False] * only_new + [True] * only_old + [True] * both + [False] * neither
    return np.array(new), np.array(old)


def test_one_against_five_discordant_images_by_hand():
    # Of 6 tosses at most one head: (1 + 6) / 64; two-sided 14 / 64.
    assert mcnemar(5, 1) == pytest.approx(14 / 64)
    assert mcnemar(1, 5) == pytest.approx(14 / 64)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (9, 1), (40, 60), (0, 2000), (5000, 5200)])
def test_mcnemar_is_the_two_sided_binomial_test_of_the_discordant_images(b: int, c: int):
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0

    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_the_bootstrap_of_the_gain_is_as_wide_as_its_standard_error_says():
    interval = bootstrap_gain(60, 40, 1000, generator(), draws=20000)

    # Variance of one image's difference: (60 + 40) / 1000 - 0.02² = 0.0996.
    half = 1.96 * math.sqrt(0.0996 / 1000)
    assert interval.value == pytest.approx(0.02)
    assert (interval.low, interval.high) == pytest.approx((0.02 - half, 0.02 + half), abs=0.05 * half)


def test_the_gains_variance_by_hand():
    new, old = models(3, 1, both=4, neither=2)

    # Differences: three 1, one -1, six 0; mean 0.2, mean square 0.4, variance 0.36, over 10 images.
    assert variance_of_gain(new, old) == pytest.approx(0.036)


@pytest.mark.parametrize(
    ("only_new", "only_old", "verdict"),
    [(40, 10, "yes"), (10, 40, "no"), (12, 10, "cannot tell"), (0, 0, "cannot tell")],
)
def test_a_verdict_needs_more_than_luck(only_new: int, only_old: int, verdict: str):
    found = compare_paired(*models(only_new, only_old, both=50), generator())

    assert found.verdict == verdict
    assert (found.only_new, found.only_old) == (only_new, only_old)


def test_where_test_and_interval_disagree_nobody_can_tell():
    # p = 14/64 for 5 against 1 and 1/16 for 5 against 0, whose bootstrap nearly always sees a gain.
    found = compare_paired(*models(5, 0, both=20), generator())

    assert found.gain.low > 0
    assert found.p == pytest.approx(2 / 32)
    assert found.verdict == "cannot tell"


def test_models_that_never_differ_leave_wilsons_doubt():
    found = compare_paired(*models(0, 0, both=50, neither=10), generator())

    assert (found.gain.low, found.gain.high) == (-wilson(0, 60).high, wilson(0, 60).high)
    assert found.gain.value == 0


def test_models_are_only_compared_on_the_same_images():
    with pytest.raises(ValueError, match="3 images against 2"):
        compare_paired(np.ones(3, bool), np.ones(2, bool), generator())


def test_no_images_say_nothing():
    found = compare_paired(np.empty(0, bool), np.empty(0, bool), generator())

    assert found.verdict == "cannot tell"
    assert (found.gain.low, found.gain.high, found.p) == (-1, 1, 1)
