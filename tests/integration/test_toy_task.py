"""A task of one new file and one line for each table, in the real loop."""

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_task
from command_line import alloop
from factories import make_project, tools_of

from alloop import consensus
from alloop.acquisition import rows
from alloop.acquisition.uncertainty import predictive_entropy
from alloop.composition import CLASSIFICATION
from alloop.config.schema import ProjectConfig
from alloop.engine import targets
from alloop.engine.score_file import read_log_probs, read_scores
from alloop.errors import LabelingError
from alloop.evaluation import measures
from alloop.labeling import label_config
from alloop.loop.intake.judge import judge_of
from alloop.loop.intake.labels import derive_labels
from alloop.loop.measuring.findings import learning_curve
from alloop.loop.rounds.runner import RunOptions, run
from alloop.loop.state import settle
from alloop.records import Answer, Consensus, ImageRef, Outcome, OutgoingTask, QueryStatus, Split
from alloop.report import shown
from alloop.store.annotations import AnnotationRecord, add_annotations, list_labels
from alloop.store.queries import list_queries
from alloop.store.rounds import find_last_model, find_last_round, list_metrics
from alloop.store.session import reading, transaction

CLASSES = ("fine", "scratch", "dent")
TABLES: tuple[Any, ...] = (
    consensus.TASKS,
    label_config.TASKS,
    targets.TASKS,
    rows.TASKS,
    measures.TASKS,
    shown.TASKS,
)
NOON = dt.datetime(2025, 6, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def defects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's task, with one line in each table."""
    monkeypatch.setattr(ProjectConfig, "task", toy_task.NAME)
    monkeypatch.setitem(consensus.TASKS, toy_task.NAME, toy_task.DefectJudge)  # type: ignore[arg-type]
    monkeypatch.setitem(label_config.TASKS, toy_task.NAME, toy_task.DefectWording())  # type: ignore[arg-type]
    monkeypatch.setitem(targets.TASKS, toy_task.NAME, toy_task.DefectCoding)  # type: ignore[arg-type]
    monkeypatch.setitem(rows.TASKS, toy_task.NAME, toy_task.DefectRule())  # type: ignore[arg-type]
    monkeypatch.setitem(measures.TASKS, toy_task.NAME, toy_task.DefectMeasures())  # type: ignore[arg-type]
    monkeypatch.setitem(shown.TASKS, toy_task.NAME, toy_task.DefectShown())  # type: ignore[arg-type]


def test_every_table_has_the_same_tasks():
    assert all(set(table) == {CLASSIFICATION} for table in TABLES)


@pytest.mark.usefixtures("defects")
def test_a_new_task_is_trained_scored_asked_measured_and_shown(tmp_path: Path):
    project = make_project(tmp_path, n=44, classes=CLASSES, pool={"near_duplicates": False})

    run(tools_of(project), RunOptions(rounds=2))

    with reading(project.database) as session:
        model = find_last_model(session)
        assert model is not None
        measured = list_metrics(session, model.id, Split.HOLDOUT.value)
        curve = learning_curve(session, project)
        number = find_last_round(session).number
        asked = list_queries(session)
    assert {"found", "accuracy", "nll"} <= set(measured)
    assert measured["found"].n < measured["accuracy"].n
    assert curve[-1].accuracy == measured["found"]
    path = project.paths.scores(number)
    scores, log_probs = read_scores(path), torch.cat([each for _, each in read_log_probs(path)])
    entropies = rows.image_scores(toy_task.DefectRule(), predictive_entropy, log_probs.unsqueeze(0))
    assert scores.entropy.tolist() == entropies.tolist()
    assert scores.confidence.tolist() == (1 / (1 + entropies)).tolist()
    status = alloop("status", "-C", project.folder).out
    assert "found %" in status
    assert re.search(r"^Found +\d+ %, between", status, re.MULTILINE)
    assert "Accuracy" not in status
    assert alloop("report", "-C", project.folder).code == 0
    image = next(query.sha256 for query in asked if query.predicted is not None)
    assert "in a thousand" in alloop("explain", image[:12], "-C", project.folder).out


@pytest.mark.usefixtures("defects")
def test_a_submission_without_a_choice_says_what_it_means_for_the_task(tmp_path: Path):
    project = make_project(tmp_path, n=4, classes=CLASSES)
    judge = judge_of(project.config.project)
    nothing = Answer("1", "ada", Outcome.EMPTY, None, NOON)

    with transaction(project.database) as session:
        add_annotations(session, [AnnotationRecord(1, None, "s", 1, nothing)], NOON)
        derive_labels(session, judge, NOON)
        labels = list_labels(session)

    assert [(label.image_id, label.consensus) for label in labels] == [(1, Consensus("fine", 1.0, 1))]
    assert settle([nothing], judge, 1) is QueryStatus.ANSWERED
    assert settle([nothing], consensus.ClassificationJudge(CLASSES), 1) is QueryStatus.EMPTY


def test_people_are_asked_in_the_words_of_the_task():
    wording = toy_task.DefectWording()
    xml = wording.build(CLASSES)
    control = label_config.check_config(xml, None, CLASSES, "project 7", wording)
    guesses = [OutgoingTask("k", ImageRef(1, "0" * 64, "a.png"), name, 0.5, "m1") for name in ("fine", "dent")]
    given = {"id": 5, "created_at": "2025-06-01T12:00:00Z", "result": []}

    shown_guesses = [label_config.prediction(guess, control, True, wording) for guess in guesses]
    answer = label_config.read_annotation(given, control.name, "ada", wording)

    assert 'Choice value="fine"' not in xml
    assert label_config.is_generated(xml, wording)
    assert control.choices == CLASSES
    assert [bool(guess and guess["result"]) for guess in shown_guesses] == [False, True]
    assert toy_task.DefectJudge(CLASSES).vote(answer) == "fine"
    with pytest.raises(LabelingError, match="of defects under a <Header>"):
        label_config.check_config("<View></View>", None, CLASSES, "project 7", wording)
