import numpy as np
import pytest

from alloop.report.histogram import BOTTOM, LEFT, RIGHT, TOP, histogram_of, make_histogram


def test_the_highest_bar_fills_the_height_and_its_parts_stand_on_each_other():
    found = make_histogram([0, 0.5, 1], [1, 3], [0, 1])

    assert found is not None
    small, large = found.bars
    assert (small.top, small.y, small.above) == (BOTTOM - 35, BOTTOM - 35, 0)
    assert (large.top, large.y, large.above, large.height) == (TOP, TOP + 35, 35, 105)
    assert (small.x, large.x + large.width) == (LEFT + 1, RIGHT - 1)
    assert (small.span, found.low, found.high, found.most) == ("0 to 0.5", "0", "1", 4)


def test_values_that_are_not_finite_are_left_out():
    found = histogram_of(np.array([0.0, 1.0, 2.0, np.nan, np.inf]), np.array([False, False, True, True, True]))

    assert found is not None
    assert (sum(bar.first for bar in found.bars), sum(bar.second for bar in found.bars)) == (2, 1)


@pytest.mark.parametrize("values", [[], [np.nan]])
def test_nothing_to_count_gives_no_histogram(values: list[float]):
    assert histogram_of(np.array(values), np.zeros(len(values), dtype=bool)) is None
    assert make_histogram([0, 1], [0], [0]) is None


def test_equal_values_give_one_bar():
    found = histogram_of(np.array([3.0, 3.0]), np.zeros(2, dtype=bool))

    assert found is not None and sum(bar.first for bar in found.bars) == 2
