"""LURE: weights by hand, no bias over many draws, no number from too few labels."""

import math

import numpy as np
import pytest

from alloop.evaluation.intervals import wilson
from alloop.evaluation.unbiased import effective_size, lure_risk, lure_weights


def uniform(drawn: int, pool: int) -> np.ndarray:
    return 1 / (pool - np.arange(drawn, dtype=float))


def test_uniform_draws_weigh_one_each():
    assert lure_weights(uniform(7, 20), 20) == pytest.approx(np.ones(7))


def test_a_pool_drawn_to_the_end_weighs_one_each_whatever_was_preferred():
    assert lure_weights(np.array([0.9, 0.2, 0.7, 1.0]), 4) == pytest.approx(np.ones(4))


def test_weights_of_two_draws_from_five_by_hand():
    # v_1 = 1 + 3/4 * (1 / (5 * 0.5) - 1) = 1 - 0.45; v_2 = 1 + 3/3 * (1 / (4 * 0.1) - 1) = 2.5.
    assert lure_weights(np.array([0.5, 0.1]), 5) == pytest.approx([0.55, 2.5])


def draw(weights: np.ndarray, n: int, generator: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """n draws without replacement by weight, and the probability each had."""
    left, picks, probs = weights.copy(), [], []
    for _ in range(n):
        shares = left / left.sum()
        pick = int(generator.choice(len(left), p=shares))
        picks.append(pick)
        probs.append(shares[pick])
        left[pick] = 0
    return picks, np.array(probs)


def test_the_mean_over_ten_thousand_draws_is_the_pools_risk():
    """12 images, 5 drawn by weights that prefer those with large losses; tolerance 3 standard errors."""
    generator = np.random.default_rng(0)
    losses = np.linspace(0, 1, 12) ** 2
    weights = 0.1 + losses

    found, naive = [], []
    for _ in range(10_000):
        picks, probs = draw(weights, 5, generator)
        risk = lure_risk(probs, losses[picks], 12, smallest=0)
        assert risk.interval is not None
        found.append(risk.interval.value)
        naive.append(losses[picks].mean())

    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - losses.mean()) < 3 * error
    assert np.mean(naive) > losses.mean() + 30 * error  # what the labels alone would say


def test_the_interval_covers_the_pools_risk_as_often_as_it_says():
    """300 images, 100 drawn by a preference for mistakes; of 400 intervals at least 372 cover (binomial, 0.5 %)."""
    generator = np.random.default_rng(1)
    wrong = (generator.random(300) < 0.2).astype(float)
    weights = 0.3 + wrong * 0.7
    covered = 0
    for _ in range(400):
        picks, probs = draw(weights, 100, generator)
        interval = lure_risk(probs, wrong[picks], 300).interval
        assert interval is not None
        covered += interval.low <= wrong.mean() <= interval.high

    assert covered >= 370


def test_fewer_than_fifty_effective_labels_give_no_number():
    few = lure_risk(uniform(49, 1000), np.zeros(49), 1000)
    enough = lure_risk(uniform(50, 1000), np.zeros(50), 1000)

    assert few.interval is None
    assert few.effective == pytest.approx(49)
    assert enough.interval is not None


def test_uneven_weights_are_worth_fewer_labels():
    # (1 + 3)² / (1 + 9) = 1.6 of 2.
    assert effective_size(np.array([1.0, 3.0])) == pytest.approx(1.6)
    assert effective_size(np.empty(0)) == 0


def test_no_mistake_among_uniform_draws_leaves_wilsons_doubt():
    interval = lure_risk(uniform(60, 10_000), np.zeros(60), 10_000).interval

    assert interval is not None
    assert (interval.value, interval.low) == (0, 0)
    assert interval.high == pytest.approx(wilson(0, 60).high)


def test_labels_that_never_came_are_counted_and_left_out():
    losses = np.ones(100)
    losses[::5] = math.nan

    risk = lure_risk(uniform(100, 1000), losses, 1000)

    assert (risk.drawn, risk.answered, risk.pool) == (100, 80, 1000)
    assert risk.interval is not None
    assert risk.interval.value == pytest.approx(1)


def test_impossible_draws_are_refused():
    with pytest.raises(ValueError, match="6 draws from 5 images"):
        lure_weights(np.full(6, 0.5), 5)
    with pytest.raises(ValueError, match="must lie in"):
        lure_weights(np.array([0.0, 0.5]), 5)
