"""Lazy greedy choice: the same places as by computing every gain after every pick."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alloop.acquisition.greedy import lazy_greedy


def _covered(sets: np.ndarray, picked: list[int]) -> np.ndarray:
    """Return the number of elements that each set [S, E] adds to the picked ones."""
    covered = sets[picked].any(axis=0) if picked else np.zeros(sets.shape[1], dtype=bool)
    return (sets & ~covered).sum(axis=1).astype(float)


def _lazily(sets: np.ndarray, k: int, n_updated: int) -> tuple[list[int], list[float], int]:
    picked: list[int] = []
    gains: list[float] = []
    n_computed = 0

    def update(places, since):
        nonlocal n_computed
        n_computed += len(places)
        assert 0 <= since < len(picked)
        return _covered(sets, picked)[places]

    for place, gain in lazy_greedy(_covered(sets, []), k, update, equal=1e-9, n_updated=n_updated, least=1.0):
        picked.append(place)
        gains.append(gain)
    return picked, gains, n_computed


@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), k=st.integers(0, 12), n_updated=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_lazily_the_same_places_are_picked_as_by_computing_all(seed, n, k, n_updated):
    sets = np.random.default_rng(seed).random((n, 30)) < 0.2
    expected: list[int] = []
    gained: list[float] = []
    while len(expected) < k and (gains := _covered(sets, expected)).max() >= 1:
        gained.append(gains.max())
        expected.append(int(gains.argmax()))

    picked, gains, _ = _lazily(sets, k, n_updated)

    assert (picked, gains) == (expected, gained)


def test_few_gains_are_computed_again():
    # Four disjoint sets of 9, 8, 7 and 6 elements: no pick makes the next one smaller.
    sets = np.zeros((200, 30), dtype=bool)
    for place, (start, stop) in enumerate([(0, 9), (9, 17), (17, 24), (24, 30)]):
        sets[place, start:stop] = True

    picked, gains, n_computed = _lazily(sets, 4, n_updated=2)

    assert (picked, gains) == ([0, 1, 2, 3], [9, 8, 7, 6])
    assert n_computed <= 3 * 3  # of 3 * 200


def test_picking_ends_where_nothing_is_gained():
    assert _lazily(np.eye(3, 5, dtype=bool)[[0, 0, 1]], 3, n_updated=2)[0] == [0, 2]
