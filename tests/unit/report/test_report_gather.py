"""Plain numbers about a project, as the database has them."""

import datetime as dt
import json
import math
import shutil
from pathlib import Path

import pytest
from factories import NOW, add_pool_image, make_config, make_image, make_query
from sqlalchemy.orm import Session

from alloop.project import Project
from alloop.records import (
    Answer,
    Calibration,
    Consensus,
    Ending,
    Interval,
    LocationStatus,
    Outcome,
    QueryStatus,
    Reason,
    RoundState,
    Split,
)
from alloop.report.gather import gather_status, to_json
from alloop.store.annotations import AnnotationRecord, add_annotations, set_labels
from alloop.store.images import set_location_status
from alloop.store.queries import add_queries, list_queries, set_status
from alloop.store.rounds import add_model, add_round, set_closed, set_metrics, set_state
from alloop.store.selections import add_selection
from alloop.store.session import transaction


@pytest.fixture
def project(tmp_path: Path, migrated_sqlite: Path) -> Project:
    """A workspace with an empty database."""
    shutil.copyfile(migrated_sqlite, tmp_path / "alloop.db")
    with Project(tmp_path, make_config(project={"classes": ("cat", "dog", "bird"), "name": "pets"}), {}) as found:
        yield found


def answer(session: Session, image_id: int, who: str, outcome: Outcome, value: str | None) -> None:
    answer = Answer(f"{who}-{image_id}", who, outcome, value, NOW, 1.0)
    record = AnnotationRecord(image_id, None, "s", 1, answer)
    add_annotations(session, [record], NOW)


def fill(session: Session) -> None:
    """Five images; round 0 asked the first four: cat, skipped, empty, open; the fifth is gone."""
    ids = [add_pool_image(session, number) for number in range(1, 6)]
    started = add_round(session, 0, {}, 0, NOW)
    reasons = [Reason.ACQUIRED, Reason.ACQUIRED, Reason.RANDOM, Reason.SEED]
    confidences = [0.5, 0.75, 0.875, None]
    picks = [
        make_query(image_id, rank=rank, reason=reason, confidence=confidence)
        for rank, (image_id, reason, confidence) in enumerate(zip(ids[:4], reasons, confidences, strict=True), start=1)
    ]
    add_queries(session, started.id, picks, "k", NOW)
    wanted = (QueryStatus.ANSWERED, QueryStatus.SKIPPED, QueryStatus.EMPTY)
    for query, status in zip(list_queries(session), wanted, strict=False):
        set_status(session, query.id, status, NOW)
    answer(session, ids[0], "ada", Outcome.LABEL, "cat")
    answer(session, ids[1], "ada", Outcome.SKIP, None)
    answer(session, ids[2], "ben", Outcome.EMPTY, None)
    answer(session, ids[4], "ben", Outcome.LABEL, "fish")
    set_labels(session, {ids[0]: Consensus("cat", 1.0, 1)}, NOW)
    set_location_status(session, [make_image(5).path], LocationStatus.MISSING, NOW)


def test_an_empty_project_has_nothing_to_say_and_says_it(project: Project):
    report = gather_status(project)

    assert (report.name, report.classes, report.rounds) == ("pets", ("cat", "dog", "bird"), ())
    assert report.pool.images == 0
    assert report.project_ref is None


def test_what_was_asked_and_answered_is_counted(project: Project):
    with transaction(project.database) as session:
        fill(session)

    report = gather_status(project)

    assert report.annotators == {"ada": {"label": 1, "skip": 1}, "ben": {"empty": 1, "label": 1}}
    assert report.unknown_values == {"fish": 1}
    assert report.class_counts == {"cat": 1}
    assert report.class_counts_holdout == {}
    assert report.skipped == (make_image(2).sha256,)
    assert report.empty == (make_image(3).sha256,)
    assert report.missing == (make_image(5).path,)
    assert (report.pool.images, report.pool.labeled, report.pool.open, report.pool.missing) == (5, 1, 1, 1)


def test_a_round_shows_its_model_its_metrics_and_the_entropy_of_its_batch(project: Project):
    accuracy = Interval(0.75, 0.3, 0.95, 4, "wilson 95%")
    with transaction(project.database) as session:
        fill(session)
        values = {
            "round_id": 1, "name": "r0-abc", "path": "runs", "sha256": "0" * 64, "head_classes": [],
            "classes": ["cat", "dog", "bird"], "label_digest": "0" * 64, "n_labels": 7, "n_holdout": 4, "seed": 0,
            "config": {}, "library_versions": {}, "history": {},
        }  # fmt: skip
        model_id = add_model(session, values, Calibration(1.25, 4, None, None, "too few"), NOW)
        set_metrics(session, model_id, Split.HOLDOUT.value, {"accuracy": accuracy}, NOW)
        set_state(session, 1, RoundState.CREATED, RoundState.CLOSED)
        set_closed(session, 1, Ending.BY_HAND, "by hand", NOW + dt.timedelta(hours=1))
        add_selection(session, 1, {"strategy": "max-herding", "notes": ["no model yet"]})

    found = gather_status(project).rounds[0]

    assert (found.number, found.state, found.model, found.n_labels) == (0, "closed", "r0-abc", 7)
    assert (found.temperature, found.calibration_note, found.closed_because) == (1.25, "too few", "by hand")
    assert found.metrics == {"accuracy": accuracy}
    assert found.queries == {"open": 1, "answered": 1, "skipped": 1, "empty": 1}
    # A confidence is 1 - entropy / ln K, of three classes.
    assert found.entropy_acquired == pytest.approx(math.log(3) * (0.5 + 0.25) / 2)
    assert found.entropy_random == pytest.approx(math.log(3) * 0.125)
    assert (found.strategy, found.notes) == ("max-herding", ("no model yet",))


def test_a_report_is_plain_data(project: Project):
    with transaction(project.database) as session:
        fill(session)

    data = json.loads(json.dumps(to_json(gather_status(project))))

    assert data["pool"]["images"] == 5
    assert data["rounds"][0]["model"] is None
    assert data["rounds"][0]["strategy"] is None
