"""Contents of rows: images and their locations, queries and tasks, versions of annotations, models and metrics."""

import dataclasses
import datetime as dt
import math

import pytest
from factories import NOW, add_pool_image, fake_sha256, make_image, make_query
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from alloop.errors import AlloopError
from alloop.records import (
    Answer,
    Calibration,
    Consensus,
    Interval,
    LocationStatus,
    Outcome,
    QueryStatus,
    Reason,
    RoundState,
    Split,
    UnreadableFile,
)
from alloop.store.annotations import (
    AnnotationRecord,
    add_annotations,
    list_annotator_counts,
    list_class_counts,
    list_current,
    list_labels,
    list_values,
    set_labels,
)
from alloop.store.images import (
    PoolCounts,
    count_pool,
    find_image_ids,
    find_locations,
    find_refs,
    list_groups,
    list_leaders,
    list_locations,
    list_refs,
    set_location_status,
    set_locations,
    set_missing,
    set_split,
)
from alloop.store.queries import (
    add_queries,
    add_tasks,
    count_by_status,
    drop_open_tasks,
    find_by_keys,
    has_open_query,
    list_asked_images,
    list_pushed,
    list_queries,
    list_skipped_images,
    list_unsent,
    set_status,
    set_tasks_gone,
)
from alloop.store.rounds import (
    add_model,
    add_round,
    find_last_model,
    find_last_round,
    find_model,
    find_round,
    list_metrics,
    set_metrics,
    set_state,
)
from alloop.store.session import reading, transaction
from alloop.store.workspace import add_event, add_workspace, find_sync, list_events, set_mark, set_project

MANY = 502  # more than one chunk of a statement's values


def make_annotation(image_id: int, external_id: str, source: str = "s", **changes: object) -> AnnotationRecord:
    answer = Answer(external_id, "ada", Outcome.LABEL, "cat", NOW)
    return AnnotationRecord(image_id, None, source, 1, dataclasses.replace(answer, **changes))  # type: ignore[arg-type]


def _next_version(record: AnnotationRecord, **changes: object) -> AnnotationRecord:
    answer = dataclasses.replace(record.answer, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(record, version=record.version + 1, answer=answer)


def test_what_is_missing_for_a_reason_does_not_come_back_by_being_there(database: Engine):
    with transaction(database) as session:
        add_pool_image(session, 1)
        path = make_image(1).path
        set_missing(session, {path: "left out: @eaDir belongs to an operating system, or alloop wrote it"}, NOW)

        set_location_status(session, [path], LocationStatus.OK, NOW)

        assert [place.reason for place in list_locations(session, LocationStatus.MISSING)] == [
            "left out: @eaDir belongs to an operating system, or alloop wrote it"
        ]


def test_lists_longer_than_a_statement_takes_are_found_whole(database: Engine):
    with transaction(database) as session:
        ids = [add_pool_image(session, number) for number in range(MANY)]
        set_split(session, ids, Split.HOLDOUT)
        set_location_status(session, [make_image(number).path for number in range(MANY)], LocationStatus.MISSING, NOW)
        set_location_status(session, [make_image(number).path for number in range(MANY)], LocationStatus.OK, NOW)
        add_annotations(session, [make_annotation(image_id, str(image_id)) for image_id in ids], NOW)
        set_labels(session, dict.fromkeys(ids, Consensus("cat", 1.0, 1)), NOW)

    with reading(database) as session:
        assert len(find_refs(session, ids)) == MANY
        assert len(find_image_ids(session, map(fake_sha256, range(MANY)))) == MANY
        assert len(find_locations(session, [make_image(number).path for number in range(MANY)])) == MANY
        assert len(list_current(session, image_ids=ids)) == MANY
        assert count_pool(session).holdout_labeled == MANY


def test_a_pool_is_counted_by_what_can_be_done_with_it(database: Engine):
    with transaction(database) as session:
        train = [add_pool_image(session, number) for number in range(4)]
        holdout = [add_pool_image(session, number, split=Split.HOLDOUT) for number in range(4, 6)]
        copy = add_pool_image(session, 6, group=holdout[0])
        set_labels(session, {train[0]: Consensus("cat", 1.0, 1), holdout[0]: Consensus("dog", 1.0, 1)}, NOW)
        set_location_status(session, [make_image(1).path], LocationStatus.MISSING, NOW)
        set_locations(session, [UnreadableFile("/pool/bad.png", 3, 3, "empty")], {}, NOW)
        started = add_round(session, 0, {}, 0, NOW)
        add_queries(session, started.id, [make_query(train[2])], "k", NOW)

    with reading(database) as session:
        assert count_pool(session) == PoolCounts(
            images=7,
            train=4,
            holdout=2,
            excluded=1,
            junk=0,
            labeled=2,
            holdout_labeled=1,
            open=1,
            missing=1,
            unreadable=1,
            groups=6,
        )
        assert list_groups(session)[copy] == holdout[0]
        assert [image_id for image_id, *_ in list_leaders(session)] == train + holdout


def test_an_image_is_listed_with_the_first_of_its_places_that_is_there(database: Engine):
    with transaction(database) as session:
        image_id = add_pool_image(session, 1, path="/pool/b.png")
        places = [make_image(1, path=path) for path in ("/pool/a.png", "/pool/c.png")]
        set_locations(session, places, {fake_sha256(1): image_id}, NOW)
        assert [ref.path for ref in list_refs(session)] == ["/pool/a.png"]

        set_location_status(session, ["/pool/a.png"], LocationStatus.MISSING, NOW)
        assert [ref.path for ref in list_refs(session)] == ["/pool/b.png"]
        assert count_pool(session).missing == 0

        set_location_status(session, ["/pool/b.png", "/pool/c.png"], LocationStatus.MISSING, NOW)
        assert list_refs(session) == []
        assert count_pool(session).missing == 1


def test_a_path_that_holds_something_else_now_says_so(database: Engine):
    with transaction(database) as session:
        add_pool_image(session, 1, path="/pool/a.png")
        second = add_pool_image(session, 2, path="/pool/b.png")
        found_now = [make_image(2, path="/pool/a.png"), UnreadableFile("/pool/b.png", 0, 0, "empty")]
        set_locations(session, found_now, {fake_sha256(2): second}, NOW)

        found = {place.path: (place.status, place.sha256, place.reason) for place in list_locations(session)}

    assert found == {
        "/pool/a.png": (LocationStatus.OK, fake_sha256(2), None),
        "/pool/b.png": (LocationStatus.UNREADABLE, None, "empty"),
    }


def test_a_query_is_unsent_until_it_has_a_task_and_pushed_until_that_is_gone(database: Engine):
    with transaction(database) as session:
        ids = [add_pool_image(session, number) for number in range(3)]
        started = add_round(session, 4, {}, 0, NOW)
        picks = [make_query(ids[2], rank=1), make_query(ids[0], rank=2), make_query(ids[1], rank=3, score=0.5)]
        add_queries(session, started.id, picks, "w-r4", NOW)
        first, second, third = list_queries(session, started.id)
        assert [(query.key, query.rank, query.round_number) for query in (first, second, third)] == [
            (f"w-r4-{ids[2]}", 1, 4), (f"w-r4-{ids[0]}", 2, 4), (f"w-r4-{ids[1]}", 3, 4),
        ]  # fmt: skip
        assert third.score == 0.5

        add_tasks(session, "s", "p", {first.id: "11", third.id: "13"}, NOW)
        assert [query.id for query in list_unsent(session)] == [second.id]
        assert {task: query.id for task, query in list_pushed(session, "s", "p").items()} == {
            "11": first.id,
            "13": third.id,
        }
        assert list_pushed(session, "s", "another project") == {}

        set_tasks_gone(session, [first.id], NOW)
        assert list(list_pushed(session, "s", "p")) == ["13"]
        assert find_by_keys(session, [first.key, "not ours"])[first.key].gone

        set_status(session, third.id, QueryStatus.ANSWERED, NOW)
        assert drop_open_tasks(session, "s") == 1
        assert [query.id for query in list_unsent(session)] == [first.id, second.id]
        assert count_by_status(session, started.id) == {QueryStatus.OPEN: 2, QueryStatus.ANSWERED: 1}
        assert not has_open_query(session, ids[1])


def test_a_skipped_image_is_known_by_the_last_round_that_asked(database: Engine):
    with transaction(database) as session:
        image_id, other = add_pool_image(session, 1), add_pool_image(session, 2)
        for number in (0, 1):
            started = add_round(session, number, {}, 0, NOW)
            add_queries(
                session, started.id, [make_query(image_id, rank=1), make_query(other, rank=2)], f"r{number}", NOW
            )
            skipped, withdrawn = list_queries(session, started.id)
            set_status(session, skipped.id, QueryStatus.SKIPPED, NOW)
            set_status(session, withdrawn.id, QueryStatus.WITHDRAWN, NOW)
            set_state(session, started.id, RoundState.CREATED, RoundState.CLOSED)

        assert list_skipped_images(session) == {image_id: 1}
        assert list_asked_images(session, Reason.ACQUIRED) == {image_id}
        assert list_asked_images(session, Reason.HOLDOUT) == set()


def test_only_the_newest_version_of_an_annotation_is_current(database: Engine):
    with transaction(database) as session:
        image_id = add_pool_image(session, 1)
        first = make_annotation(image_id, "a")
        add_annotations(session, [first, make_annotation(image_id, "b", annotator="ben", value="dog")], NOW)
        edited = _next_version(first, value="dog", updated_at=NOW + dt.timedelta(seconds=1))
        add_annotations(session, [edited], NOW)
        add_annotations(session, [_next_version(edited, outcome=Outcome.DELETED, value=None)], NOW)
        add_annotations(
            session, [make_annotation(image_id, "a", source="other", outcome=Outcome.SKIP, value=None)], NOW
        )

        current = {(record.source, record.answer.external_id): record.version for record in list_current(session)}
        assert current == {("s", "a"): 3, ("s", "b"): 1, ("other", "a"): 1}
        assert [record.answer.external_id for record in list_current(session, source="other")] == ["a"]
        assert list_annotator_counts(session) == {"ada": {"skip": 1}, "ben": {"label": 1}}
        assert list_values(session) == {"dog": 1}
        assert session.execute(text("SELECT count(*) FROM annotation")).scalar_one() == 5


def test_labels_are_replaced_and_listed_by_content_hash(database: Engine):
    with transaction(database) as session:
        ids = [add_pool_image(session, number) for number in range(5)]
        set_split(session, [ids[4]], Split.HOLDOUT)
        set_labels(session, dict.fromkeys(ids, Consensus("cat", 1.0, 1)), NOW)
        set_labels(session, {ids[0]: Consensus("dog", 0.5, 2), ids[1]: None}, NOW)

        labels = list_labels(session)
        assert [label.sha256 for label in labels] == sorted(fake_sha256(number) for number in (0, 2, 3, 4))
        assert list_class_counts(session, Split.TRAIN) == {"cat": 2, "dog": 1}
        assert [label.image_id for label in list_labels(session, Split.HOLDOUT)] == [ids[4]]


def add_some_model(session: Session, round_id: int, name: str) -> int:
    values = {
        "round_id": round_id, "name": name, "path": "runs/m", "sha256": "0" * 64, "classes": ["cat", "dog"],
        "head_classes": [["cat"], ["dog"]], "label_digest": "1" * 64, "n_labels": 3, "n_holdout": 2, "seed": 2**63 - 1,
        "config": {"model": {"members": 2}}, "library_versions": {"torch": "2"}, "history": {"loss": [0.5, 0.25]},
    }  # fmt: skip
    return add_model(session, values, Calibration(1.5, 60, 0.7, 0.6, "fine"), NOW)


def test_a_model_comes_back_as_it_was_and_a_second_one_of_the_round_replaces_it(database: Engine):
    with transaction(database) as session:
        started = add_round(session, 0, {}, 2**63 - 1, NOW)
        first = add_some_model(session, started.id, "r0-a")
        set_metrics(session, first, "holdout", {"accuracy": Interval(0.5, 0.1, 0.9, 2, "wilson 95%")}, NOW)
        add_some_model(session, started.id, "r0-b")

        model = find_model(session, started.id)
        assert model == find_last_model(session)
        assert model is not None
        assert (model.name, model.seed, model.classes) == ("r0-b", 2**63 - 1, ("cat", "dog"))
        assert model.calibration == Calibration(1.5, 60, 0.7, 0.6, "fine")
        assert model.head_classes == (("cat",), ("dog",))
        assert session.execute(text("SELECT count(*) FROM metric")).scalar_one() == 0


def test_an_infinite_metric_comes_back_infinite(database: Engine):
    with transaction(database) as session:
        model_id = add_some_model(session, add_round(session, 0, {}, 0, NOW).id, "r0-a")
        metrics = {"nll": Interval(math.inf, 0.25, math.inf, 2, "bootstrap 95%")}
        set_metrics(session, model_id, "holdout", metrics, NOW)

        assert list_metrics(session, model_id, "holdout") == metrics


def test_rounds_are_found_by_number_and_a_missing_one_is_named(database: Engine):
    with transaction(database) as session:
        assert find_last_round(session) is None
        add_round(session, 0, {"loop": {"batch_size": 5}}, 1, NOW)
        assert find_round(session, 0).config == {"loop": {"batch_size": 5}}
        with pytest.raises(AlloopError, match="no round 3") as caught:
            find_round(session, 3)
        assert "alloop round list" in caught.value.hint


def test_a_workspace_keeps_its_identity(database: Engine):
    with transaction(database) as session:
        given = add_workspace(session, NOW)
        assert add_workspace(session, NOW) == given
        assert len(given) == 32


def test_events_are_listed_newest_first(database: Engine):
    with transaction(database) as session:
        for number in range(3):
            add_event(session, "ada", "kind" if number < 2 else "other", NOW, number, n=number)

        assert [event["round"] for event in list_events(session)] == [2, 1, 0]
        assert [event["data"] for event in list_events(session, "kind", limit=1)] == [{"n": 1}]


def test_another_project_is_pulled_from_its_beginning(database: Engine):
    with transaction(database) as session:
        set_project(session, "s", "1")
        set_mark(session, "s", "mark", NOW)
        set_mark(session, "s", None, NOW)
        set_project(session, "s", "1")
        found = find_sync(session, "s")
        assert found is not None
        assert (found.mark, found.pulled_at) == ("mark", NOW)

        set_project(session, "s", "2")
        found = find_sync(session, "s")
        assert found is not None
        assert (found.project_ref, found.mark) == ("2", None)
