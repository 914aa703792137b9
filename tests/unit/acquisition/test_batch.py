"""Choosing a batch: by hand on five images, and what must hold for any."""

import collections
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.acquisition.batch import compose_batch, draw_uniform, top_k
from alloop.acquisition.strategy import Choice
from alloop.records import Reason


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _keys(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def _batch(scores, k, random_fraction=0.0, keys=None, seed=0, chances=None):
    """A share drawn uniformly and the highest scores; `chances` are those of what is acquired."""
    n = len(scores)
    scores = np.asarray(scores, dtype=np.float32)
    keys = np.arange(n, dtype=np.uint64) if keys is None else keys

    def acquire(rest, drawn, wanted):
        assert not set(rest) & set(drawn)
        best = top_k(scores[rest], keys[rest], wanted)
        return Choice(best, scores[rest[best]].astype(float), chances, ("by score",))

    picks, _ = compose_batch(keys, k, random_fraction, _generator(seed), acquire)
    return picks


def test_the_three_highest_of_five_in_order():
    assert top_k(np.array([0.1, 0.9, 0.5, 0.7, 0.2]), _keys(0, 1, 2, 3, 4), 3).tolist() == [1, 3, 2]


def test_equal_scores_go_to_the_smaller_keys():
    assert top_k(np.ones(5), _keys(40, 10, 30, 50, 20), 3).tolist() == [1, 4, 2]


@pytest.mark.parametrize("k", [0, 5, 50])
def test_asking_for_none_all_or_more_than_there_are(k):
    picks = _batch([0.1, 0.9, 0.5, 0.7, 0.2], k, random_fraction=0.5)

    assert len({pick.position for pick in picks}) == len(picks) == min(k, 5)
    assert [pick.rank for pick in picks] == list(range(1, len(picks) + 1))


def test_an_empty_pool_gives_an_empty_batch():
    assert _batch([], 3, random_fraction=0.5) == ()


def test_without_a_random_share_the_batch_is_the_best_in_order():
    picks = _batch([0.1, 0.9, 0.5, 0.7, 0.2], 3)

    assert [pick.position for pick in picks] == [1, 3, 2]
    assert {pick.reason for pick in picks} == {Reason.ACQUIRED}
    assert {pick.probability for pick in picks} == {None}


@pytest.mark.parametrize(
    ("k", "fraction", "expected"), [(10, 0.1, 1), (5, 0.1, 1), (4, 0.1, 0), (50, 0.1, 5), (3, 1.0, 3)]
)
def test_the_random_share_is_rounded_half_up(k, fraction, expected):
    picks = _batch(np.arange(100), k, fraction)

    assert sum(pick.reason is Reason.RANDOM for pick in picks) == expected


def test_the_random_share_is_a_uniform_sample_of_all_candidates():
    drawn = collections.Counter(
        pick.position
        for seed in range(2000)
        for pick in _batch(np.arange(10), 4, 0.5, seed=seed)
        if pick.reason is Reason.RANDOM
    )

    # Each of the 10 is among the 2 drawn with probability 0.2: 400 of 2000, standard deviation sqrt(2000 * 0.16) = 18.
    assert all(abs(drawn[position] - 400) < 5 * 18 for position in range(10))
    assert {pick.probability for pick in _batch(np.arange(10), 4, 0.5) if pick.reason is Reason.RANDOM} == {0.2}


def test_the_random_share_does_not_depend_on_the_scores():
    low, high = (
        {pick.position for pick in _batch(scores, 6, 0.5) if pick.reason is Reason.RANDOM}
        for scores in (np.arange(50), -np.arange(50))
    )

    assert low == high


def test_draws_are_numbered_the_uniform_ones_first():
    picks = _batch(np.arange(9), 4, 0.5, chances=np.array([0.4, 0.3]))

    numbers = {pick.draw_number: (pick.reason, pick.probability) for pick in picks}
    assert [numbers[m][0] for m in (1, 2, 3, 4)] == [Reason.RANDOM] * 2 + [Reason.ACQUIRED] * 2
    assert [numbers[m][1] for m in (1, 2, 3, 4)] == [2 / 9, 2 / 9, 0.4, 0.3]


def test_what_was_not_drawn_has_no_number():
    picks = [pick for pick in _batch(np.arange(9), 4, 0.5) if pick.reason is Reason.ACQUIRED]

    assert {(pick.draw_number, pick.probability) for pick in picks} == {(None, None)}
    assert {pick.score for pick in picks} <= {float(score) for score in range(9)}


def test_random_picks_are_not_always_last():
    ranks = {pick.rank for seed in range(100) for pick in _batch(np.arange(20), 5, 0.2, seed=seed) if pick.probability}

    assert ranks == {1, 2, 3, 4, 5}


def test_acquired_images_are_asked_in_the_order_of_their_scores():
    picks = [pick for pick in _batch(np.arange(30), 10, 0.3) if pick.reason is Reason.ACQUIRED]

    positions = [pick.position for pick in picks]
    assert positions == sorted(positions, reverse=True)


def test_random_and_acquired_never_take_the_same_image():
    for seed in range(50):
        assert len({pick.position for pick in _batch(np.arange(9), 5, 0.34, seed=seed)}) == 5


def test_the_probability_of_a_random_pick_counts_candidates():
    assert {pick.probability for pick in _batch(np.arange(4), 3, 1.0)} == {3 / 4}


@given(
    scores=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=1, max_size=40),
    k=st.integers(0, 45),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 100),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_shuffling_the_rows_changes_nothing(scores, k, fraction, seed, order):
    n = len(scores)
    keys = np.array([(position * 2654435761) % 2**32 for position in range(n)], dtype=np.uint64)
    shuffled = np.array(order.sample(range(n), n))

    picks = _batch(scores, k, fraction, keys, seed)
    again = _batch(np.array(scores)[shuffled], k, fraction, keys[shuffled], seed)

    assert [(pick.position, pick.reason) for pick in picks] == [
        (shuffled[pick.position], pick.reason) for pick in again
    ]
    assert len(picks) == min(k, n)


def test_the_same_seed_gives_the_same_batch_and_another_seed_another():
    batches = [_batch(np.arange(100), 10, 0.5, seed=seed) for seed in (1, 1, 2)]

    assert batches[0] == batches[1] != batches[2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named_by_its_position(value):
    with pytest.raises(ValueError, match="position 2 is not finite"):
        top_k(np.array([0.1, 0.2, value]), _keys(1, 2, 3), 1)


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="one row per image"):
        top_k(np.ones(3), _keys(1, 2), 1)


def test_inputs_stay_as_they_were():
    scores, keys = np.array([0.3, 0.1, 0.3]), _keys(3, 1, 2)
    before = [array.copy() for array in (scores, keys)]

    top_k(scores, keys, 2)
    compose_batch(keys, 2, 1.0, _generator(), lambda rest, drawn, k: pytest.fail("nothing is left to choose"))

    for array, copy in zip((scores, keys), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_drawing_from_nothing_draws_nothing():
    positions, probability = draw_uniform(np.empty(0, dtype=np.int64), 3, _generator())

    assert (positions.tolist(), probability) == ([], 0)


def test_drawing_all_draws_everyone_with_certainty():
    positions, probability = draw_uniform(np.array([4, 7, 9]), 5, _generator())

    assert sorted(positions.tolist()) == [4, 7, 9]
    assert probability == 1
