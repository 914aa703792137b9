"""Facts about rounds that have tables of their own, on both databases."""

import pytest
from factories import NOW, add_pool_image, fake_sha256
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from alloop.records import Agreement, Ending, RoundState
from alloop.store.holdout import add_draw, drop_draws, list_grown, list_probabilities
from alloop.store.images import find_all_refs, find_refs
from alloop.store.rounds import (
    add_round,
    find_round,
    list_agreements,
    set_agreement,
    set_closed,
    set_matched,
    set_state,
)
from alloop.store.selections import add_selection, find_selection, list_selections
from alloop.store.session import reading, transaction


@pytest.fixture
def rounds(database: Engine) -> list[int]:
    """Ids of rounds 0 and 1; the first is closed."""
    with transaction(database) as session:
        first = add_round(session, 0, {}, 0, NOW).id
        set_state(session, first, RoundState.CREATED, RoundState.CLOSED)
        set_closed(session, first, Ending.ANSWERED, "all answered", NOW)
        return [first, add_round(session, 1, {}, 0, NOW).id]


def test_an_image_has_the_probability_of_the_draw_that_took_it(database: Engine, rounds: list[int]):
    with transaction(database) as session:
        ids = [add_pool_image(session, number) for number in range(4)]
        add_draw(session, rounds[0], ids[:2], 8, is_growth=False)
        add_draw(session, rounds[1], ids[2:3], 3, is_growth=True)

        assert list_probabilities(session) == {ids[0]: 2 / 8, ids[1]: 2 / 8, ids[2]: 1 / 3}
        assert list_grown(session) == {ids[2]}
        drop_draws(session)
        assert (list_probabilities(session), list_grown(session)) == ({}, set())


def test_a_draw_of_more_images_than_groups_is_refused(database: Engine, rounds: list[int]):
    with pytest.raises(IntegrityError, match="ck_holdout_draw_n_images"), transaction(database) as session:
        ids = [add_pool_image(session, number) for number in range(2)]
        add_draw(session, rounds[0], ids, 1, is_growth=False)


def test_a_selection_is_read_as_it_was_recorded(database: Engine, rounds: list[int]):
    made_with = {
        "strategy": "margin", "notes": ["first", "second"], "n": 6, "settings": {"perturb": "none"},
        "library_versions": {"numpy": "2"}, "path": "runs/x", "sha256": "5" * 64,
    }  # fmt: skip
    with transaction(database) as session:
        add_selection(session, rounds[1], made_with)
    with reading(database) as session:
        assert find_selection(session, rounds[0]) is None
        found = find_selection(session, rounds[1])
        assert found is not None
        assert list_selections(session) == {1: found}
        assert {name: getattr(found, name) for name in made_with} == {**made_with, "notes": ("first", "second")}
    with pytest.raises(IntegrityError, match="ck_selection_file"), transaction(database) as session:
        add_selection(session, rounds[0], {**made_with, "sha256": None})


def test_the_newest_agreement_and_comparison_of_a_round_count(database: Engine, rounds: list[int]):
    with transaction(database) as session:
        for share in (0.5, 0.75):
            set_agreement(session, rounds[1], Agreement(1, 0, share, 4))
        set_matched(session, rounds[1], {"says": "not compared"})
    with transaction(database) as session:
        assert list_agreements(session) == [Agreement(1, 0, 0.75, 4)]
        assert find_round(session, 1).matched == {"says": "not compared"}
        set_agreement(session, rounds[1], None)
        set_matched(session, rounds[1], None)
    with reading(database) as session:
        assert list_agreements(session) == []
        assert session.execute(text("SELECT count(*) FROM round WHERE matched IS NULL")).scalar_one() == 2


def test_a_round_ends_for_a_reason_that_is_known(database: Engine, rounds: list[int]):
    with reading(database) as session:
        found = find_round(session, 0)
    assert (found.ending, found.closed_because) == (Ending.ANSWERED, "all answered")
    assert [ending for ending in Ending if not ending.is_stop] == [Ending.ANSWERED, Ending.BY_HAND]
    with pytest.raises(IntegrityError, match="ck_round_ending"), transaction(database) as session:
        session.execute(text("UPDATE round SET ending = 'tired' WHERE number = 0"))


def test_images_without_a_file_are_found_with_their_last_path(database: Engine):
    with transaction(database) as session:
        there, missing, nowhere = (add_pool_image(session, number) for number in range(3))
        session.execute(
            text("UPDATE image_location SET status = 'missing' WHERE image_id = :image"), {"image": missing}
        )
        session.execute(text("DELETE FROM image_location WHERE image_id = :image"), {"image": nowhere})

        found = find_all_refs(session, [there, missing, nowhere])

        assert find_refs(session, [there, missing, nowhere]) == {there: found[there]}
        assert [found[image].sha256 for image in (there, missing, nowhere)] == [fake_sha256(n) for n in range(3)]
        assert found[missing].path != ""
        assert found[nowhere].path == ""
