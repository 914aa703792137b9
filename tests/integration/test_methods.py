"""Rounds with every kind of model, from an empty workspace to answers, with an oracle on tiny images."""

from pathlib import Path

import pytest
from factories import make_project

from alloop.loop.runner import RunOptions, run
from alloop.report.gather import gather_status

MODELS = {
    "multi-head": {"uncertainty": "multi-head", "members": 2},
    "single": {"uncertainty": "single"},
    "ensemble": {"uncertainty": "ensemble", "members": 2, "heads": 2},
    "mc-dropout": {"uncertainty": "mc-dropout", "members": 5},
    "mc-dropout-consistent": {"uncertainty": "mc-dropout", "members": 5, "consistent_masks": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_two_rounds_run_with_every_kind_of_model(tmp_path: Path, name: str):
    project = make_project(tmp_path, n=40, model=MODELS[name])

    run(project, RunOptions(rounds=2))

    rounds = gather_status(project).rounds
    assert [row.state for row in rounds] == ["closed", "closed"]
    assert rounds[1].model is not None
    assert rounds[1].metrics["accuracy"].n == 8
    assert rounds[1].entropy_acquired is not None
