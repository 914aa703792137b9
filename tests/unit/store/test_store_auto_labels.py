"""Automatic labels: rows of their own, withdrawn as soon as a person labels the image."""

import datetime as dt

import pytest
from factories import NOW, add_pool_image
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from alloop.records import Consensus, Reason, Split
from alloop.store.annotations import list_class_counts, list_labels, set_labels
from alloop.store.auto_labels import (
    add_auto_labels,
    add_look,
    count_auto_labels,
    list_auto_labels,
    list_looks,
    withdraw_auto_labels,
)
from alloop.store.images import count_pool
from alloop.store.session import reading, transaction

LATER = NOW + dt.timedelta(hours=1)


def look(session: Session, **changes: object) -> int:
    values = {
        "model": "r1-abc",
        "model_sha256": "0" * 64,
        "holdout_digest": "1" * 64,
        "max_error": 0.01,
        "confidence": 0.95,
        "is_classwise": False,
        "n_holdout": 400,
        "outcome": {"chains": []},
    }
    return add_look(session, {**values, **changes}, NOW).id


def label(image_id: int, **changes: object) -> dict[str, object]:
    return {"image_id": image_id, "class_name": "cat", "probability": 0.99, "threshold": 0.9, **changes}


def test_an_automatic_label_is_not_a_persons_label(database: Engine):
    with transaction(database) as session:
        image_id = add_pool_image(session, 1)
        add_auto_labels(session, look(session), [label(image_id)], NOW)

    with reading(database) as session:
        (found,) = list_auto_labels(session)
        assert (found.image_id, found.class_name, found.model, found.look) == (image_id, "cat", "r1-abc", 1)
        assert (found.source, found.probability, found.threshold) == ("auto", 0.99, 0.9)
        assert found.path == "/pool/0001.png"
        assert list_labels(session) == []
        assert list_class_counts(session, Split.TRAIN) == {}
        assert count_pool(session).labeled == 0


def test_a_persons_label_replaces_an_automatic_one_at_once(database: Engine):
    with transaction(database) as session:
        first, second = (add_pool_image(session, number) for number in (1, 2))
        add_auto_labels(session, look(session), [label(first), label(second)], NOW)

        set_labels(session, {first: Consensus("dog", 1.0, 1), second: None}, LATER)

        assert [found.image_id for found in list_auto_labels(session)] == [second]
        set_labels(session, {first: None}, LATER)
        assert [found.image_id for found in list_auto_labels(session)] == [second]


def test_an_image_has_one_active_automatic_label(database: Engine):
    with transaction(database) as session:
        image_id, look_id = add_pool_image(session, 1), look(session)
        add_auto_labels(session, look_id, [label(image_id)], NOW)
        withdraw_auto_labels(session, LATER, [image_id])
        add_auto_labels(session, look_id, [label(image_id, class_name="dog")], LATER)

        assert [found.class_name for found in list_auto_labels(session)] == ["dog"]
    with pytest.raises(IntegrityError), transaction(database) as session:
        add_auto_labels(session, look_id, [label(image_id)], LATER)


def test_withdrawing_all_automatic_labels_leaves_peoples_labels(database: Engine):
    with transaction(database) as session:
        first, second = (add_pool_image(session, number) for number in (1, 2))
        set_labels(session, {first: Consensus("dog", 1.0, 1)}, NOW)
        add_auto_labels(session, look(session), [label(second)], NOW)

        assert withdraw_auto_labels(session, LATER) == 1
        assert withdraw_auto_labels(session, LATER) == 0

        assert count_auto_labels(session) == 0
        assert len(list_labels(session)) == 1


def test_looks_are_numbered_from_one(database: Engine):
    with transaction(database) as session:
        look(session)
        look(session, max_error=0.02)

        assert [(found.number, found.max_error) for found in list_looks(session)] == [(1, 0.01), (2, 0.02)]


def test_a_query_may_be_an_audit(database: Engine):
    from factories import make_query

    from alloop.store.queries import add_queries, list_queries
    from alloop.store.rounds import add_round

    with transaction(database) as session:
        current = add_round(session, 0, {}, 0, NOW)
        add_queries(session, current.id, [make_query(add_pool_image(session, 1), reason=Reason.AUDIT)], "key", NOW)

        assert [query.reason for query in list_queries(session)] == [Reason.AUDIT]
