"""The learning curve: a known law is found, its interval is honest, shared holdouts err together."""

import numpy as np
import pytest

from alloop.evaluation.curve import covariance_of, fit_curve
from alloop.evaluation.intervals import wilson
from alloop.records import CurvePoint, Interval

LABELS = (50, 100, 150, 200, 300, 400)


def law(n: float) -> float:
    return 0.9 - 0.3 * (n / 50) ** -1.0


def exact(n: int, deviation: float = 1e-3) -> CurvePoint:
    half = 1.959964 * deviation
    return CurvePoint(n, Interval(law(n), law(n) - half, law(n) + half, 1000, "wilson 95%"))


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_power_law_is_found_and_goes_on():
    curve = fit_curve([exact(n) for n in LABELS], generator())

    assert curve is not None
    # Errors 0.1 + 0.3 * 50 / n: from 400 to 800 the gain is 0.3 * 50 * (1 / 400 - 1 / 800) = 0.01875.
    gain = curve.gain(400, 800)
    assert gain.value == pytest.approx(0.01875, abs=1e-6)
    assert gain.low < gain.value < gain.high
    assert gain.n == 6


def test_two_numbers_of_labels_are_no_curve():
    assert fit_curve([exact(50), exact(100), exact(100)], generator()) is None
    assert fit_curve([], generator()) is None


def test_a_curve_that_has_not_moved_promises_nothing_sure():
    points = [CurvePoint(n, wilson(160, 200)) for n in LABELS]

    curve = fit_curve(points, generator())

    assert curve is not None
    gain = curve.gain(400, 800)
    assert gain.value == pytest.approx(0, abs=1e-9)
    assert gain.low < 0 < gain.high


def test_a_small_holdout_without_a_mistake_does_not_make_the_curve_flat():
    points = [CurvePoint(n, wilson(60, 60)) for n in LABELS]

    curve = fit_curve(points, generator(), covariance_of(np.ones((6, 60), dtype=bool)))

    assert curve is not None
    # One mistake in 60 images would be 1.7 pp, and nobody can tell half a point.
    assert curve.gain(400, 800).high > 0.005


def test_no_law_errs_in_less_than_no_image():
    steep = [CurvePoint(n, wilson(1000 - k, 1000)) for n, k in ((50, 400), (100, 150), (200, 20))]

    curve = fit_curve(steep, generator())

    assert curve is not None
    assert curve.fitted[0] == 0
    # All that is left of the error at 200 labels, where the law has 0.417 * 4^-2.
    assert curve.gain(200, 10**9).value == pytest.approx(0.026, abs=0.001)


def test_the_interval_of_the_next_doubling_covers_the_truth_about_as_often_as_it_says():
    """At 95 % with three numbers fitted to six points, at least 176 of 200 noisy curves are expected to be covered."""
    noise, covered = np.random.default_rng(3), 0
    truth = law(800) - law(400)
    for seed in range(200):
        points = [CurvePoint(n, wilson(int(noise.binomial(400, law(n))), 400)) for n in LABELS]
        curve = fit_curve(points, np.random.default_rng(seed))
        assert curve is not None
        gain = curve.gain(400, 800)
        covered += gain.low <= truth <= gain.high

    assert covered >= 176


def test_the_covariance_of_two_models_by_hand():
    correct = np.array([[True, True, False, False], [True, False, False, False]])

    # Means 0.5 and 0.25; variances 0.25 and 0.1875, covariance 0.25 - 0.125; over 4 images, and 1/16 of doubt.
    expected = np.array([[0.25, 0.125], [0.125, 0.1875]]) / 4 + np.eye(2) / 16
    assert covariance_of(correct) == pytest.approx(expected)


def test_rounds_that_err_together_tell_more_about_the_slope():
    points = [CurvePoint(n, wilson(round(400 * law(n)), 400)) for n in LABELS]
    variance = 0.15 / 400
    together = np.full((6, 6), 0.95 * variance) + 0.05 * variance * np.eye(6)

    alone, shared = fit_curve(points, generator()), fit_curve(points, generator(), together)

    assert alone is not None
    assert shared is not None
    narrow, wide = shared.gain(400, 800), alone.gain(400, 800)
    assert narrow.high - narrow.low < 0.6 * (wide.high - wide.low)
