"""Questions asked by hand and images marked as junk, as rows."""

import pytest
from factories import NOW, add_pool_image, make_query
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from alloop.loop.intake.near_copies import update_splits
from alloop.records import Consensus, QueryStatus, Reason, Split
from alloop.store.annotations import list_labels, set_labels
from alloop.store.images import count_pool, find_split, list_refs
from alloop.store.junk import add_junk, drop_junk, find_junk
from alloop.store.queries import add_queries, count_by_hand, list_first_reasons, list_queries, set_status
from alloop.store.rounds import add_round
from alloop.store.session import transaction


def test_junk_is_in_no_list_of_images_to_train_on_and_comes_back(database: Engine):
    with transaction(database) as session:
        kept, junk = add_pool_image(session, 1), add_pool_image(session, 2)
        set_labels(session, {kept: Consensus("cat", 1.0, 1), junk: Consensus("dog", 1.0, 1)}, NOW)

        add_junk(session, [junk], "blurred", "ada@desk pid 7", NOW)

        (mark,) = find_junk(session, [kept, junk]).values()
        assert (mark.image_id, mark.reason, mark.marked_by, mark.marked_at) == (junk, "blurred", "ada@desk pid 7", NOW)
        assert [ref.image_id for ref in list_refs(session, Split.TRAIN)] == [kept]
        assert [label.image_id for label in list_labels(session, Split.TRAIN)] == [kept]
        assert (count_pool(session).junk, count_pool(session).labeled) == (1, 1)
        assert update_splits(session) == {}

        drop_junk(session, [junk])

        assert find_junk(session, [junk]) == {}
        assert {label.image_id for label in list_labels(session, Split.TRAIN)} == {kept, junk}


def test_an_image_is_marked_once(database: Engine):
    with pytest.raises(IntegrityError), transaction(database) as session:
        junk = add_pool_image(session, 1)
        add_junk(session, [junk], "", "ada", NOW)
        add_junk(session, [junk], "", "bob", NOW)


def test_a_near_copy_of_a_holdout_image_stays_junk_while_the_mark_stands(database: Engine):
    with transaction(database) as session:
        held = add_pool_image(session, 1, split=Split.HOLDOUT)
        copy = add_pool_image(session, 2, group=held)
        assert find_split(session, copy) is Split.EXCLUDED

        add_junk(session, [copy], "", "ada", NOW)
        update_splits(session, [copy])
        assert find_split(session, copy) is Split.JUNK

        drop_junk(session, [copy])
        update_splits(session, [copy])
        assert find_split(session, copy) is Split.EXCLUDED


def test_an_image_that_was_also_asked_for_by_hand_counts_as_that(database: Engine):
    with transaction(database) as session:
        chosen, both, only = (add_pool_image(session, number) for number in (1, 2, 3))
        first, second = add_round(session, 0, {}, 0, NOW), None
        add_queries(session, first.id, [make_query(chosen, rank=1), make_query(both, rank=2)], "a", NOW)
        set_status(session, list_queries(session)[1].id, QueryStatus.SKIPPED, NOW)
        session.connection().exec_driver_sql("UPDATE round SET state = 'closed'")
        second = add_round(session, 1, {}, 0, NOW)
        by_hand = [make_query(both, rank=1, reason=Reason.MANUAL), make_query(only, rank=2, reason=Reason.MANUAL)]
        add_queries(session, second.id, by_hand, "b", NOW)

        assert list_first_reasons(session) == {
            chosen: Reason.ACQUIRED,
            both: Reason.MANUAL,
            only: Reason.MANUAL,
        }
        assert count_by_hand(session) == 0
        set_labels(session, {image_id: Consensus("cat", 1.0, 1) for image_id in (chosen, both, only)}, NOW)
        assert count_by_hand(session) == 2
        add_junk(session, [only], "", "ada", NOW)
        assert count_by_hand(session) == 1
