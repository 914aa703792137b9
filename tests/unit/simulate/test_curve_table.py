"""Two strategies whose curves can be read off."""

import dataclasses

import pytest

from alloop.errors import LabelError
from alloop.evaluation.learning_curves import Reached
from alloop.simulate.curve_table import table_json, tabulate
from alloop.simulate.run import Simulation, StrategyCell


def _cell(strategy: str, seed: int, *accuracy: float) -> StrategyCell:
    n = len(accuracy)
    return StrategyCell(
        strategy=strategy,
        seed=seed,
        picks=tuple((4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3) for i in range(n)),
        n_labels=tuple(4 * (i + 1) for i in range(n)),
        accuracy=accuracy,
        seconds=(2.0,) * n,
        select_seconds=(0.5,) * n,
        score_seconds=(0.5,) * n,
        train_seconds=(1.0,) * n,
        n_test=100,
        rest=None,
        n_rest=0,
        ended="round limit reached",
    )


def test_a_strategy_is_compared_with_random_on_the_seeds_that_both_have():
    cells = (
        _cell("random", 0, 0.2, 0.4),
        _cell("random", 1, 0.2, 0.6),
        _cell("margin", 0, 0.2, 0.8),
        _cell("margin", 1, 0.2, 0.8),
        _cell("margin", 2, 0.9, 0.9),
    )

    table = tabulate(Simulation(("random", "margin"), cells))

    assert (table.budgets, table.seeds, table.n_test) == ((4, 8), (0, 1), (100,))
    random, margin = table.rows
    assert margin.mean == pytest.approx((0.2, 0.8))
    assert (random.area, margin.area) == pytest.approx((0.35, 0.5))
    # Random ends at 0.5, half of the way from 0.2 to 0.8.
    assert margin.to_match is not None
    assert margin.to_match.labels == pytest.approx(6)
    assert margin.ahead is not None
    assert margin.ahead[-1][0] == pytest.approx(0.3)
    # Better at 8 labels with both seeds; at 4 both have the same.
    assert (table.wins[1][0], table.wins[0][1], table.wins[1][1]) == (1, 0, 0.5)
    assert (margin.seconds, margin.select_seconds) == (2.0, 0.5)


def test_random_goes_by_any_of_its_spellings():
    table = tabulate(Simulation(("Random", "margin"), (_cell("Random", 0, 0.2), _cell("margin", 0, 0.3))))

    assert all(row.to_match is not None for row in table.rows)


def test_without_random_there_is_nothing_to_match():
    table = tabulate(Simulation(("margin",), (_cell("margin", 0, 0.2),)))

    assert (table.rows[0].to_match, table.rows[0].ahead) == (None, None)


def test_curves_end_where_the_shortest_ends():
    cells = (_cell("random", 0, 0.2, 0.3, 0.4), _cell("margin", 0, 0.2, 0.5))

    table = tabulate(Simulation(("random", "margin"), cells))

    assert table.budgets == (4, 8)
    assert table.rows[0].mean == pytest.approx((0.2, 0.3))


def test_what_was_not_reached_is_null_in_json():
    table = tabulate(Simulation(("random", "margin"), (_cell("random", 0, 0.5), _cell("margin", 0, 0.2))))

    assert table.rows[1].to_match == Reached(float("inf"), float("inf"), float("inf"))
    assert table_json(table)["rows"][1]["to_match"] == {"labels": None, "low": None, "high": None}


def test_a_run_without_a_round_is_named_with_its_reason():
    empty = dataclasses.replace(_cell("random", 0), ended="stopped: pool exhausted")

    with pytest.raises(LabelError, match=r"random, seed 0: no image could be asked about \(stopped: pool exhausted\)"):
        tabulate(Simulation(("random",), (empty,), (), ()))


def test_without_a_seed_in_common_there_is_no_table():
    table = tabulate(Simulation(("random", "margin"), (_cell("random", 0, 0.5), _cell("margin", 1, 0.2))))

    assert table.rows == ()
