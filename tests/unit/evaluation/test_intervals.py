"""Intervals: Wilson's by hand, the bootstrap against theory and a resampling loop."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from alloop.evaluation.intervals import (
    Statistic,
    adaptive_ece_of,
    bootstrap_all,
    classwise_ece_of,
    ece_of,
    mce_of,
    mean_of,
    wilson,
)
from alloop.records import Interval


def _generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def bootstrap(statistic: Statistic, n: int, generator: np.random.Generator, draws: int = 1000) -> Interval:
    """The interval of one statistic."""
    return bootstrap_all({"": statistic}, n, generator, draws)[""]


def test_wilsons_interval_of_eight_in_ten_by_hand():
    interval = wilson(8, 10)

    # z = 1.959964, z² = 3.841459: middle (0.8 + 0.192073) / 1.384146 = 0.716740
    # half-width 1.959964 / 1.384146 * sqrt(0.016 + 0.009604) = 0.226577
    assert interval.value == 0.8
    assert (interval.low, interval.high) == pytest.approx((0.490162, 0.943318), abs=2e-6)
    assert (interval.n, interval.method) == (10, "wilson 95%")


def test_wilsons_interval_of_none_and_all_stays_within_zero_and_one():
    # At 0 of n it is [0, z² / (n + z²)].
    assert (wilson(0, 20).low, wilson(0, 20).high) == pytest.approx((0, 3.841459 / 23.841459), abs=1e-6)
    assert (wilson(20, 20).low, wilson(20, 20).high) == pytest.approx((20 / 23.841459, 1), abs=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 7), (190, 200), (49_999, 50_000)])
def test_wilsons_interval_agrees_with_scipys(successes: int, n: int):
    interval = wilson(successes, n, 0.9)

    expected = binomtest(successes, n).proportion_ci(0.9, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_counted_means_anything_is_possible():
    interval = wilson(0, 0)

    assert math.isnan(interval.value)
    assert (interval.low, interval.high) == (0, 1)


def test_more_successes_than_trials_are_refused():
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error_says():
    values = _generator(1).normal(size=400)

    interval = bootstrap(mean_of(values), 400, _generator(), draws=4000)

    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_bootstraps_value_is_that_of_the_data():
    golden = np.load(Path(__file__).parents[2] / "assets" / "golden" / "metrics_c10.npz")

    interval = bootstrap(ece_of(golden["probs"], golden["labels"]), 2000, _generator(), draws=10)

    assert interval.value == pytest.approx(float(golden["ece15_right_closed"]), abs=1e-12)


def test_the_same_seed_gives_the_same_interval():
    values = _generator(1).normal(size=50)

    first, second = (bootstrap(mean_of(values), 50, _generator(3)) for _ in range(2))

    assert first == second
    assert first != bootstrap(mean_of(values), 50, _generator(4))


def test_an_infinite_loss_makes_the_upper_bound_infinite_and_nothing_nan():
    interval = bootstrap(mean_of(np.array([0.1] * 99 + [math.inf])), 100, _generator())

    assert interval.value == math.inf
    assert interval.low == pytest.approx(0.1, abs=0.01)
    assert interval.high == math.inf


def test_a_bootstrap_of_nothing_says_nothing():
    interval = bootstrap(mean_of(np.empty(0)), 0, _generator())

    assert math.isnan(interval.value)
    assert (interval.low, interval.high, interval.n) == (-math.inf, math.inf, 0)


@pytest.mark.parametrize("statistic_of", [ece_of, mce_of, adaptive_ece_of, classwise_ece_of])
def test_statistics_of_a_resample_are_those_of_its_images(statistic_of):
    generator = _generator(1)
    probs, labels = generator.dirichlet([0.5] * 4, size=60), generator.integers(4, size=60)
    counts = generator.multinomial(60, [1 / 60] * 60, size=20).astype(float)

    values = statistic_of(probs, labels)(counts)

    rows = [np.repeat(np.arange(60), count.astype(int)) for count in counts]
    alone = [statistic_of(probs[row], labels[row])(np.ones((1, 60)))[0] for row in rows]
    assert values == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("statistic_of", [mce_of, adaptive_ece_of, classwise_ece_of])
def test_intervals_of_calibration_errors_hold_for_a_single_image(statistic_of):
    interval = bootstrap(statistic_of(np.array([[0.7, 0.3]]), np.array([0])), 1, _generator(), draws=10)

    assert (interval.low, interval.value, interval.high) == pytest.approx((0.3, 0.3, 0.3))
