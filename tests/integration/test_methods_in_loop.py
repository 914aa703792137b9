"""Rounds with every kind of model, from an empty workspace to answers, with an oracle on tiny images."""

from pathlib import Path

import numpy as np
import pytest
from command_line import alloop
from factories import at_bench, make_project, tools_of

from alloop.engine.score_file import read_scores
from alloop.loop.measuring.measure import evaluate
from alloop.loop.rounds.runner import RunOptions, run
from alloop.report.gather import gather_status
from alloop.store.queries import list_queries
from alloop.store.rounds import find_round
from alloop.store.session import reading

MODELS = {
    "multi-head": {"uncertainty": "multi-head", "members": 2},
    "single": {"uncertainty": "single"},
    "ensemble": {"uncertainty": "ensemble", "members": 2, "heads": 2},
    "mc-dropout": {"uncertainty": "mc-dropout", "members": 5},
    "mc-dropout-consistent": {"uncertainty": "mc-dropout", "members": 5, "consistent_masks": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_two_rounds_run_with_every_kind_of_model(tmp_path: Path, name: str):
    project = make_project(tmp_path, n=40, model=MODELS[name], train={"epochs": 40})

    run(tools_of(project), RunOptions(rounds=2))

    rounds = gather_status(project).rounds
    assert [row.state for row in rounds] == ["closed", "closed"]
    assert rounds[1].model is not None
    assert rounds[1].metrics["accuracy"].n == 8
    assert rounds[1].entropy_acquired is not None


@pytest.mark.parametrize("method", ["none", "platt", "histogram-mass", "auto"])
def test_status_says_which_calibrator_was_fitted_to_how_many_labels(tmp_path: Path, method: str):
    holdout = {"holdout_size": 60, "holdout_share": 0.6}
    project = make_project(tmp_path, n=100, calibration={"method": method}, evaluation=holdout)
    run(tools_of(project), RunOptions(rounds=2))

    measured = gather_status(project).rounds[1]
    shown = alloop("status", "-v", "-C", project.folder).out
    _, again = at_bench(project, evaluate)

    assert measured.n_calibration == 60
    assert set(measured.metrics) == {
        "accuracy", "nll", "nll_uncalibrated", "brier", "ece", "ece_uncalibrated", "mce", "adaptive_ece",
        "classwise_ece",
    }  # fmt: skip
    assert all(metric.low <= metric.value and metric.n == 60 for metric in measured.metrics.values())
    assert f"Calibrated by {measured.calibration} on 60 holdout labels. NLL" in " ".join(shown.split())
    # A prediction that went through the float32 score file can fall on the other side of a histogram bin's edge.
    tolerance = 0.05 if method.startswith("histogram") else 1e-3
    assert again["nll"].value == pytest.approx(measured.metrics["nll"].value, abs=tolerance)
    assert again["nll_uncalibrated"].value == pytest.approx(measured.metrics["nll_uncalibrated"].value, abs=1e-3)


@pytest.mark.parametrize(
    "strategy", ["expected-entropy", "mutual-information", "least-confidence", "margin", "variation-ratio"]
)
def test_the_batch_is_what_the_strategy_scores_highest(tmp_path: Path, strategy: str):
    settings = {"strategy": strategy, "random_fraction": 0.0}
    project = make_project(tmp_path, n=60, acquisition=settings, pool={"near_duplicates": False})
    run(tools_of(project), RunOptions(rounds=2))

    scores = read_scores(project.paths.scores(1))
    with reading(project.database) as session:
        queries = list_queries(session, find_round(session, 1).id)

    highest = np.sort(scores.uncertainty[strategy])[::-1][: len(queries)]
    assert {query.strategy for query in queries} == {strategy}
    np.testing.assert_allclose([query.score for query in queries], highest, atol=1e-6)


@pytest.mark.parametrize(
    "ood_score", ["msp", "entropy", "energy", "max-logit", "gen", "mutual-information", "odin", "gradnorm"]
)
@pytest.mark.parametrize("skip", [False, True])
def test_suspects_are_marked_and_shown_or_not_asked_about(tmp_path: Path, ood_score: str, skip: bool):
    settings = {"ood_score": ood_score, "suspect_quantile": 0.5, "skip_suspects": skip}
    project = make_project(tmp_path, n=40, acquisition=settings, pool={"near_duplicates": False})
    run(tools_of(project), RunOptions(rounds=1))
    for step in ("train", "score", "select"):
        assert alloop(step, "-C", project.folder).code == 0

    scores = read_scores(project.paths.scores(1))
    with reading(project.database) as session:
        queries = list_queries(session, find_round(session, 1).id)
    status, shown = (
        alloop("status", "-v", "-C", project.folder).out,
        alloop("round", "show", "1", "-C", project.folder).out,
    )

    assert scores.ood is not None
    bound = sorted(scores.ood)[(len(scores.ood) + 1) // 2 - 1]
    above = {int(image_id) for image_id, ood in zip(scores.image_ids, scores.ood, strict=True) if ood > bound}
    assert {query.image_id for query in queries if query.suspect} == {query.image_id for query in queries} & above
    assert any(query.suspect for query in queries) != skip
    assert ("look unlike the rest" in status) != skip
    assert shown.count("suspect") == sum(query.suspect for query in queries)
