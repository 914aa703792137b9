"""Measures of predictions before and after calibrators; cells on disk."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from alloop.errors import WorkspaceError
from alloop.files import write_json
from alloop.simulate.compare import MethodCell, measure_stage, measure_stages, read_cell
from alloop.simulate.ood import OodScore


def test_a_stage_is_measured_by_hand():
    # Three images of class 0 at 0.8, one of them really class 1.
    log_probs = torch.tensor([[0.8, 0.2]] * 3).log().double()

    stage = measure_stage(log_probs, np.array([0, 0, 1]), seed=0)

    assert stage.metrics["accuracy"] == pytest.approx(2 / 3)
    assert stage.metrics["ece"] == pytest.approx(0.8 - 2 / 3)
    assert stage.metrics["nll"] == pytest.approx(-(2 * math.log(0.8) + math.log(0.2)) / 3)
    assert stage.metrics["brier"] == pytest.approx((2 * 0.08 + 1.28) / 3)
    # 0.8 is the right edge of the 12th of 15 bins, and float32 0.8 lies above it: the 13th.
    filled = [position for position, n in enumerate(stage.count) if n]
    assert [stage.count[p] for p in filled] == [3]
    assert [stage.accuracy[p] for p in filled] == pytest.approx([2 / 3])
    assert stage.intervals.keys() == stage.metrics.keys()
    assert all(low <= stage.metrics[name] <= high for name, (low, high) in stage.intervals.items())
    assert stage.intervals["mce"] == pytest.approx((0.8 - 2 / 3, 0.8))  # one of three wrong, all wrong
    assert stage.intervals["brier"] == pytest.approx((0.08, 1.28))


def _overconfident(n: int) -> tuple[torch.Tensor, np.ndarray]:
    """Right with probability 0.75, sure with 0.99."""
    generator = np.random.default_rng(0)
    targets = generator.integers(2, size=n)
    said = np.where(generator.random(n) < 0.75, targets, 1 - targets)
    probs = np.full((n, 2), 0.01)
    probs[np.arange(n), said] = 0.99
    return torch.from_numpy(np.log(probs)), targets


@pytest.mark.parametrize("n_calibration", [200, 0])
def test_calibration_mends_what_is_too_sure_and_never_changes_the_raw_stage(n_calibration: int):
    log_probs, targets = _overconfident(500)
    fitted_to = (log_probs[:n_calibration], targets[:n_calibration])

    stages = measure_stages(*fitted_to, log_probs[n_calibration:], targets[n_calibration:], ("temperature",), seed=0)

    assert list(stages) == ["raw", "temperature"]
    assert stages["raw"].metrics["ece"] > 0.2
    assert stages["temperature"].metrics["ece"] < 0.06
    assert stages["temperature"].metrics["accuracy"] == stages["raw"].metrics["accuracy"]
    assert stages["temperature"].calibrator["n"] == (n_calibration or 500)


def _cell() -> MethodCell:
    log_probs, targets = _overconfident(60)
    stages = measure_stages(log_probs, targets, log_probs, targets, ("temperature",), seed=0)
    strange = OodScore({"auroc": 0.8}, {"auroc": (0.7, 0.9)}, (0.0, 0.5, 1.0), (3, 1), (1, 3))
    return MethodCell("SL1H", 0, 10, 60, 60, 1.5, 0.01, stages, {"MSP": strange})


def test_a_cell_is_read_as_it_was_written(tmp_path: Path):
    cell = _cell()

    write_json(tmp_path / "cell.json", dataclasses.asdict(cell))

    again = read_cell(tmp_path / "cell.json")
    assert again is not None
    assert dataclasses.replace(again, stages={}) == dataclasses.replace(cell, stages={})
    assert again.stages["raw"] == cell.stages["raw"]
    assert again.stages["temperature"].metrics == cell.stages["temperature"].metrics


def test_an_absent_cell_is_none_and_a_damaged_one_is_named(tmp_path: Path):
    assert read_cell(tmp_path / "none.json") is None

    (tmp_path / "half.json").write_text('{"method": "SL1H"')

    with pytest.raises(WorkspaceError, match=r"half\.json is damaged"):
        read_cell(tmp_path / "half.json")
