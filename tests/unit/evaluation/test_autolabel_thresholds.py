"""Thresholds that keep a promise: exact p-values, a fixed order of tests, and looks that share the confidence."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from alloop.evaluation.autolabel import (
    clopper_pearson,
    fewest_images,
    labels_missing,
    level_of_look,
    p_value,
    walk,
)

MANY = 10_000_000  # images of a rest that is as good as endless


@pytest.mark.parametrize(("errors", "n"), [(0, 299), (1, 473), (2, 628)])
def test_one_percent_at_95_percent_needs_the_known_numbers_of_images(errors: int, n: int):
    assert fewest_images(errors, 0.01, 0.05) == n
    assert p_value(errors, n, MANY, 0.01) == pytest.approx(binom.cdf(errors, n, 0.01), abs=1e-5)
    assert binom.cdf(errors, n - 1, 0.01) > 0.05


@pytest.mark.parametrize(("errors", "n", "n_rest"), [(0, 4, 3), (1, 4, 4), (2, 5, 4), (1, 3, 6)])
def test_the_p_value_of_a_small_rest_is_that_of_all_orders_of_its_errors(errors: int, n: int, n_rest: int):
    """Second implementation: every order of n + n_rest images, for every total number of errors."""
    max_error = 0.3
    broken = math.floor(max_error * n_rest) + 1
    worst = 0.0
    for total in range(n + n_rest + 1):
        orders = list(itertools.combinations(range(n + n_rest), total))
        bad = [
            order
            for order in orders
            if sum(place < n for place in order) <= errors and sum(place >= n for place in order) >= broken
        ]
        worst = max(worst, len(bad) / len(orders))

    assert p_value(errors, n, n_rest, max_error) == pytest.approx(max(worst, binom.cdf(errors, n, max_error)))


def test_a_small_rest_needs_more_evidence_than_its_error_probability():
    """One error of 50 breaks a promise of 1 %; it lies in the rest with probability 50 / 349."""
    assert p_value(0, 299, 50, 0.01) == pytest.approx(50 / 349)
    assert binom.cdf(0, 299, 0.01) < 0.05


def test_a_rest_in_which_no_error_could_break_the_promise_is_tested_by_the_binomial_alone():
    assert p_value(3, 100, 0, 0.05) == pytest.approx(binom.cdf(3, 100, 0.05))


def surest_first(n: int, wrong: list[int]) -> tuple[np.ndarray, np.ndarray]:
    errors = np.zeros(n, dtype=bool)
    errors[wrong] = True
    return np.arange(n, 0, -1, dtype=np.float64), errors


def test_the_walk_stops_at_the_first_threshold_that_fails():
    # Errors at ranks 350 and 400: 299 images have none, 473 have two where one is allowed. 628 would pass with two.
    scores, errors = surest_first(1000, [349, 399])
    rest = np.repeat(scores, 2000)

    found = walk(scores, errors, rest, 0.01, 0.05)

    assert [(step.n, step.errors) for step in found.steps] == [(299, 0), (473, 2)]
    assert found.accepted == found.steps[0]
    assert found.accepted.threshold == scores[299]
    assert found.accepted.n_rest == 299 * 2000


def test_without_errors_the_walk_ends_with_all_images():
    scores, errors = surest_first(700, [])

    found = walk(scores, errors, np.repeat(scores, 5000), 0.01, 0.05)

    assert [step.n for step in found.steps] == [299, 473, 628, 700]
    assert found.accepted is not None
    assert found.accepted.threshold == -math.inf


def test_too_few_images_are_not_tested_at_all():
    scores, errors = surest_first(298, [])

    assert walk(scores, errors, np.repeat(scores, 5000), 0.01, 0.05).steps == ()


def test_an_error_among_the_surest_images_allows_nothing():
    scores, errors = surest_first(1000, [0])

    found = walk(scores, errors, np.repeat(scores, 5000), 0.01, 0.05)

    assert (found.accepted, len(found.steps)) == (None, 1)


def test_thresholds_do_not_depend_on_labels():
    rng = np.random.default_rng(0)
    scores, rest = rng.random(800), rng.random(5000)

    none = walk(scores, np.zeros(800, dtype=bool), rest, 0.02, 0.05).steps
    some = walk(scores, rng.random(800) < 0.01, rest, 0.02, 0.05).steps

    assert [step.threshold for step in some] == [step.threshold for step in none][: len(some)]


def test_images_with_equal_scores_are_accepted_together_or_not_at_all():
    scores = np.repeat([3.0, 2.0, 1.0], [200, 200, 100])

    found = walk(scores, np.zeros(500, dtype=bool), np.repeat(scores, 2000), 0.01, 0.05)

    assert [step.n for step in found.steps] == [400, 500]


@pytest.mark.parametrize("max_error", [0.0, 1.0])
def test_a_promise_of_nothing_or_everything_is_refused(max_error: float):
    with pytest.raises(ValueError, match="max_error"):
        walk(np.ones(3), np.zeros(3, dtype=bool), np.ones(3), max_error, 0.05)


@pytest.mark.parametrize(("share", "most", "least"), [(0.012, 26, 0), (0.001, 300, 150)])
def test_errors_at_random_are_found_in_time(share: float, most: int, least: int):
    """Labels wrong at random at every score: above the promise of 1 % at most 26 of 300 walks may accept anything."""
    rng = np.random.default_rng(1)
    accepted = 0
    for _ in range(300):
        scores, errors = rng.random(1500), rng.random(1500) < share
        accepted += walk(scores, errors, rng.random(20_000), 0.01, 0.05).accepted is not None

    assert least <= accepted <= most


def test_the_share_of_errors_in_a_small_rest_keeps_the_promise():
    """Errors grow smoothly with uncertainty; the rest has 300 images. The binomial alone breaks the promise more."""
    rng = np.random.default_rng(2)
    broken = 0
    for _ in range(400):
        scores = rng.random(900)
        errors = rng.random(900) < 0.15 * (1 - scores) ** 2
        drawn, rest = slice(0, 600), slice(600, 900)
        step = walk(scores[drawn], errors[drawn], scores[rest], 0.02, 0.1).accepted
        if step is not None:
            broken += errors[rest][scores[rest] > step.threshold].mean() > 0.02

    assert broken <= 0.1 * 400 + 2 * math.sqrt(400 * 0.1 * 0.9)


def test_looks_share_the_confidence():
    levels = [level_of_look(number, 0.95) for number in range(1, 2001)]

    assert levels[:3] == pytest.approx([0.025, 0.05 / 6, 0.05 / 12])
    assert 0.0499 < sum(levels) < 0.05


def test_looking_after_every_round_keeps_the_promise():
    """Eight rounds whose models are all a little too bad; the same 800 holdout images are looked at each time."""
    rng = np.random.default_rng(3)
    broken = 0
    for _ in range(200):
        hard = rng.random(800)  # images that are hard for one model are hard for the next
        for number in range(1, 9):
            errors = 0.7 * hard + 0.3 * rng.random(800) < 0.083  # probability 0.083² / (2 * 0.7 * 0.3) = 1.64 %
            if walk(rng.random(800), errors, rng.random(20_000), 0.015, level_of_look(number, 0.9)).accepted:
                broken += 1
                break

    assert broken <= 0.1 * 200 + 2 * math.sqrt(200 * 0.1 * 0.9)


def test_missing_labels_are_those_that_would_pass_without_an_error():
    scores, errors = surest_first(100, [])

    assert labels_missing(scores, errors, 0.01, 0.05) == 199


def test_missing_labels_follow_the_best_threshold():
    # One error at rank 401: the 400 surest have none, and 299 of those suffice at any level up to 5 %.
    scores, errors = surest_first(500, [400])

    needed = labels_missing(scores, errors, 0.01, 0.001)

    assert needed == math.ceil(fewest_images(0, 0.01, 0.001) / 400 * 500) - 500


def test_no_number_of_labels_helps_if_the_surest_images_are_wrong_too_often():
    scores, errors = surest_first(200, list(range(0, 200, 10)))

    assert labels_missing(scores, errors, 0.01, 0.05) is None


@pytest.mark.parametrize(("errors", "n"), [(0, 30), (1, 30), (30, 30), (3, 200)])
def test_the_interval_of_a_share_is_that_of_scipy(errors: int, n: int):
    known = binomtest(errors, n).proportion_ci(0.95, "exact")

    assert clopper_pearson(errors, n) == pytest.approx((known.low, known.high))
    assert clopper_pearson(0, 0) == (0.0, 1.0)
