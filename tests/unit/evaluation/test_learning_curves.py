"""Curves small enough to be worked out by hand."""

import math

import numpy as np
import pytest

from alloop.evaluation.learning_curves import area, difference, labels_to, labels_to_match, wins

BUDGETS = np.array([10.0, 20.0, 40.0])


def test_the_area_is_the_mean_height_weighted_by_width():
    # Trapezoids of width 10 and 20: (0.2 + 0.4) / 2 * 10 + (0.4 + 0.8) / 2 * 20 = 15, over 30.
    assert area(BUDGETS, np.array([[0.2, 0.4, 0.8], [0.5, 0.5, 0.5]])).tolist() == pytest.approx([0.5, 0.5])


def test_the_area_under_a_single_point_is_its_height():
    assert area(np.array([10.0]), np.array([[0.3], [0.6]])).tolist() == [0.3, 0.6]


def test_a_target_is_reached_on_a_line_between_budgets():
    # A quarter of the way from 0.4 to 0.8 is a quarter of the way from 20 to 40.
    assert labels_to(BUDGETS, np.array([0.2, 0.4, 0.8]), 0.5) == pytest.approx(25)


def test_the_first_time_counts_when_a_curve_falls_back():
    assert labels_to(BUDGETS, np.array([0.2, 0.6, 0.4]), 0.4) == pytest.approx(15)


def test_a_target_below_the_start_is_reached_at_the_first_budget():
    assert labels_to(BUDGETS, np.array([0.2, 0.4, 0.8]), 0.1) == 10


def test_a_target_above_the_curve_is_not_reached():
    assert labels_to(BUDGETS, np.array([0.2, 0.4, 0.8]), 0.9) == math.inf


def test_a_strategy_needs_as_many_labels_as_itself():
    curves = np.array([[0.2, 0.4, 0.8], [0.3, 0.5, 0.7]])

    reached = labels_to_match(BUDGETS, curves, curves, np.random.default_rng(0))

    assert (reached.labels, reached.low, reached.high) == (40, 40, 40)


def test_labels_to_match_are_those_of_the_mean_curve():
    # The means are 0.3, 0.5, 0.9 and at the end 0.6: a quarter of the way from 20 to 40. One seed alone is at 20 when
    # it reaches its own 0.6; the other goes from 0.4 to 0.8 and is at 30. Resamples have either one or both.
    curves = np.array([[0.4, 0.6, 1.0], [0.2, 0.4, 0.8]])
    reference = np.array([[0.1, 0.2, 0.6], [0.1, 0.2, 0.6]])

    reached = labels_to_match(BUDGETS, curves, reference, np.random.default_rng(0))

    assert reached.labels == pytest.approx(25)
    assert (reached.low, reached.high) == (pytest.approx(20), pytest.approx(30))


def test_what_is_not_reached_in_some_resamples_has_no_upper_end():
    curves = np.array([[0.1, 0.2, 0.9], [0.1, 0.2, 0.3]])
    reference = np.array([[0.1, 0.2, 0.5], [0.1, 0.2, 0.5]])

    reached = labels_to_match(BUDGETS, curves, reference, np.random.default_rng(0))

    assert math.isfinite(reached.labels)
    assert reached.high == math.inf


def test_wins_are_counted_over_seeds_and_budgets_and_ties_by_half():
    # Better, equal; worse, better: 2.5 of 4.
    assert wins(np.array([[0.5, 0.5], [0.1, 0.9]]), np.array([[0.4, 0.5], [0.2, 0.8]])) == pytest.approx(0.625)


def test_the_wins_of_two_strategies_add_up_to_all():
    generator = np.random.default_rng(0)
    one, other = generator.integers(3, size=(2, 5, 4)) / 3

    assert wins(one, other) + wins(other, one) == pytest.approx(1)


def test_a_difference_that_is_the_same_in_all_seeds_is_certain():
    reference = np.array([[0.1, 0.2], [0.5, 0.6]])

    mean, low, high = difference(reference + 0.1, reference, np.random.default_rng(0))

    for values in (mean, low, high):
        assert values.tolist() == pytest.approx([0.1, 0.1])


def test_a_difference_that_changes_sign_between_seeds_is_in_doubt():
    mean, low, high = difference(np.array([[0.3], [0.1]]), np.array([[0.2], [0.2]]), np.random.default_rng(0))

    assert mean[0] == pytest.approx(0)
    assert (low[0], high[0]) == (pytest.approx(-0.1), pytest.approx(0.1))
