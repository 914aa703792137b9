"""Cells → table: means, ranks, places, by hand."""

import csv
import json
import math
from pathlib import Path

import pytest

from alloop.simulate.compare import CellStage, Comparison, MethodCell
from alloop.simulate.methods import find_method
from alloop.simulate.summary import summarize, write_tables


def _stage(accuracy: float, ece: float, nll: float) -> CellStage:
    metrics = {"accuracy": accuracy, "ece": ece, "nll": nll, "brier": nll / 2, "mce": 0.5}
    return CellStage(metrics, {"ece": (0.0, 0.1)}, (1, 3), (0.4, 0.8), (0.0, 1.0))


def _cell(method: str, seed: int, accuracy: float, ece: float, nll: float, seconds: float = 1.0) -> MethodCell:
    stages = {"raw": _stage(accuracy, ece, nll), "temperature": _stage(accuracy, ece / 2, nll)}
    return MethodCell(method, seed, 6, 2, 4, train_seconds=seconds, score_seconds=seconds / 1000, stages=stages)


def _comparison(*cells: MethodCell) -> Comparison:
    return Comparison(tuple(find_method(name) for name in ("SL1H", "4HML", "LS")), cells)


TWO_SEEDS = (
    _cell("SL1H", 0, 0.80, 0.06, 0.5),
    _cell("SL1H", 1, 0.84, 0.08, 0.7),
    _cell("4HML", 0, 0.80, 0.04, 0.4, seconds=2.0),
    _cell("4HML", 1, 0.80, 0.04, 0.4, seconds=4.0),
    _cell("LS", 0, 0.70, 0.20, 0.9),
    _cell("LS", 1, 0.70, 0.20, 0.9),
)


def test_means_and_deviations_are_over_seeds_with_ddof_0():
    row = summarize(_comparison(*TWO_SEEDS))[0]

    accuracy = row.stages["raw"]["accuracy"]
    assert (row.method, row.n_seeds) == ("SL1H", 2)
    assert (accuracy.mean, accuracy.std) == pytest.approx((0.82, 0.02))
    assert row.stages["temperature"]["ece"].mean == pytest.approx(0.035)


def test_the_best_and_second_best_are_marked_the_right_way_round():
    rows = {row.method: row.stages["raw"] for row in summarize(_comparison(*TWO_SEEDS))}

    assert {name: row["accuracy"].place for name, row in rows.items()} == {"SL1H": 1, "4HML": 2, "LS": 0}
    assert {name: row["ece"].place for name, row in rows.items()} == {"SL1H": 2, "4HML": 1, "LS": 0}


def test_equal_values_share_a_place_and_a_rank():
    cells = [_cell("SL1H", 0, 0.8, 0.1, 0.5), _cell("4HML", 0, 0.8, 0.1, 0.5), _cell("LS", 0, 0.7, 0.2, 0.6)]

    rows = summarize(_comparison(*cells))

    assert [row.stages["raw"]["nll"].place for row in rows] == [1, 1, 2]
    assert [row.ranks["raw"] for row in rows] == pytest.approx([1.5, 1.5, 3.0])


def test_the_rank_is_the_mean_over_accuracy_ece_and_nll():
    # 4HML: 2 in accuracy, 1 in ECE, 1 in NLL.
    ranks = {row.method: row.ranks["raw"] for row in summarize(_comparison(*TWO_SEEDS))}

    assert ranks == pytest.approx({"SL1H": 5 / 3, "4HML": 4 / 3, "LS": 3.0})


def test_times_are_relative_to_the_single_head():
    rows = {row.method: row for row in summarize(_comparison(*TWO_SEEDS))}

    assert rows["4HML"].train_ratio == pytest.approx(3.0)
    assert rows["4HML"].score_milliseconds == pytest.approx(3.0)
    without = summarize(_comparison(*TWO_SEEDS[2:]))
    assert [row.score_ratio for row in without] == [None, None]


def test_only_seeds_that_all_methods_have_are_compared():
    rows = summarize(_comparison(*TWO_SEEDS[:3]))

    assert [(row.method, row.n_seeds) for row in rows] == [("SL1H", 1), ("4HML", 1)]
    assert rows[0].stages["raw"]["accuracy"].mean == pytest.approx(0.80)


def test_nothing_finished_is_no_table():
    assert summarize(_comparison()) == ()


def test_files_hold_every_cell_and_every_row(tmp_path: Path):
    comparison = _comparison(*TWO_SEEDS)

    cells, summary, whole = write_tables(comparison, summarize(comparison), tmp_path)

    lines = list(csv.DictReader(cells.read_text().splitlines()))
    assert len(lines) == 6 * 2
    assert (lines[0]["method"], lines[0]["stage"], float(lines[0]["ece"])) == ("SL1H", "raw", 0.06)
    means = {
        (line["method"], line["stage"]): float(line["nll_mean"])
        for line in csv.DictReader(summary.read_text().splitlines())
    }
    assert math.isclose(means["SL1H", "raw"], 0.6)
    assert len(json.loads(whole.read_text())["cells"]) == 6
