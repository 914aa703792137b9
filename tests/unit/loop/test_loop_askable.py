"""Images that may be asked about: not known, declined, missing or set aside ones, and no copies of known ones."""

import pytest
from factories import NOW, add_pool_image, make_config, make_image, make_query
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from alloop.loop.choosing.askable import list_askable, list_holdout_to_ask
from alloop.records import Consensus, LocationStatus, QueryStatus, Reason, RoundState, Split
from alloop.store.annotations import set_labels
from alloop.store.images import set_location_status, set_unreadable
from alloop.store.queries import add_queries, list_queries, set_status
from alloop.store.rounds import add_round, set_state
from alloop.store.session import transaction


def asked(session: Session, number: int, image_id: int, status: QueryStatus, reason: Reason = Reason.ACQUIRED) -> None:
    """A closed round that asked about one image."""
    started = add_round(session, number, {}, 0, NOW)
    add_queries(session, started.id, [make_query(image_id, rank=1, reason=reason)], f"r{number}", NOW)
    set_status(session, list_queries(session, started.id)[0].id, status, NOW)
    set_state(session, started.id, RoundState.CREATED, RoundState.CLOSED)


def askable(session: Session, number: int = 9, after: int | None = None) -> list[int]:
    settings = make_config(acquisition={"ask_skipped_after": after}).acquisition
    return [ref.image_id for ref in list_askable(session, settings, number)]


@pytest.mark.parametrize(
    ("status", "is_askable"),
    [
        (QueryStatus.OPEN, False),
        (QueryStatus.SKIPPED, False),
        (QueryStatus.UNKNOWN, False),
        (QueryStatus.EMPTY, True),
        (QueryStatus.WITHDRAWN, True),
    ],
)
def test_an_image_that_was_asked_about_comes_back_or_not(database: Engine, status: QueryStatus, is_askable: bool):
    with transaction(database) as session:
        image_id, other = add_pool_image(session, 1), add_pool_image(session, 2)
        asked(session, 0, image_id, status)

        assert askable(session) == ([image_id, other] if is_askable else [other])


@pytest.mark.parametrize(("number", "is_askable"), [(3, False), (4, False), (5, True), (6, True)])
def test_a_skipped_image_comes_back_after_so_many_rounds(database: Engine, number: int, is_askable: bool):
    with transaction(database) as session:
        image_id = add_pool_image(session, 1)
        asked(session, 3, image_id, QueryStatus.SKIPPED)

        assert askable(session, number, after=2) == ([image_id] if is_askable else [])
        assert askable(session, number, after=None) == []


def test_a_labeled_image_and_its_near_copies_are_known(database: Engine):
    with transaction(database) as session:
        first, second, third = (add_pool_image(session, number) for number in (1, 2, 3))
        copy = add_pool_image(session, 4, group=first)
        add_pool_image(session, 5, group=second)
        set_labels(session, {copy: Consensus("cat", 1.0, 1)}, NOW)
        asked(session, 0, second, QueryStatus.OPEN)

        assert askable(session) == [third]


def test_only_train_images_that_are_there_are_asked(database: Engine):
    with transaction(database) as session:
        there, missing, broken = (add_pool_image(session, number) for number in (1, 2, 3))
        add_pool_image(session, 4, split=Split.HOLDOUT)
        add_pool_image(session, 5, split=Split.EXCLUDED)
        set_location_status(session, [make_image(2).path], LocationStatus.MISSING, NOW)
        set_unreadable(session, {make_image(3).path: "empty"}, NOW)

        assert askable(session) == [there]

        set_location_status(session, [make_image(2).path, make_image(3).path], LocationStatus.OK, NOW)
        assert askable(session) == [there, missing, broken]


@pytest.mark.parametrize(
    ("status", "is_asked"),
    [
        (QueryStatus.OPEN, False),
        (QueryStatus.SKIPPED, False),
        (QueryStatus.EMPTY, False),
        (QueryStatus.UNKNOWN, False),
        (QueryStatus.WITHDRAWN, True),
    ],
)
def test_a_holdout_image_is_asked_once_unless_its_task_was_lost(database: Engine, status: QueryStatus, is_asked: bool):
    with transaction(database) as session:
        fresh = add_pool_image(session, 1, split=Split.HOLDOUT)
        before = add_pool_image(session, 2, split=Split.HOLDOUT)
        labeled = add_pool_image(session, 3, split=Split.HOLDOUT)
        set_labels(session, {labeled: Consensus("cat", 1.0, 1)}, NOW)
        asked(session, 0, before, status, Reason.HOLDOUT)

        assert [ref.image_id for ref in list_holdout_to_ask(session)] == ([fresh, before] if is_asked else [fresh])
