"""Rules for closing a round, and its message about its questions."""

import pytest

from alloop.errors import nearest
from alloop.loop.rounds.tally import Tally


@pytest.mark.parametrize(
    ("found", "share", "enough"),
    [
        (Tally(labeled=8), 1.0, True),
        (Tally(labeled=7, open=1), 1.0, False),
        (Tally(labeled=4, open=4), 0.5, True),
        (Tally(labeled=5, unknown=2, withdrawn=1), 1.0, True),
        (Tally(skipped=8), 1.0, True),
        (Tally(skipped=7, withdrawn=1), 1.0, True),
        (Tally(unknown=8), 1.0, False),
        (Tally(withdrawn=8), 1.0, False),
        (Tally(empty=8), 1.0, False),
        (Tally(skipped=1, unknown=7), 1.0, False),
        (Tally(unknown=4, open=4), 0.5, False),
    ],
)
def test_a_round_is_not_closed_by_answers_that_give_no_label(found: Tally, share: float, enough: bool):
    assert found.is_enough(share) is enough


def test_what_is_settled_without_a_label_is_not_told_as_answered():
    assert Tally(labeled=8).describe() == "8 of 8 images answered"
    assert Tally(labeled=3, skipped=2, empty=1, unknown=4, withdrawn=5, open=1).describe() == (
        "3 of 16 images answered; 2 skipped, 1 submitted without a class, 4 answered with an unknown class, 5 "
        "withdrawn, because their task was deleted, their file is missing or changed, or they are marked as junk"
    )


@pytest.mark.parametrize(
    ("value", "classes", "near"),
    [
        ("Cat", ("cat", "dog"), "cat"),
        ("1", ("100", "001", "010"), "001"),
        ("1.0", ("2", "1"), "1"),
        ("TRUE", ("false", "true"), "true"),
        ("dgo", ("cat", "dog"), "dog"),
        ("giraffe", ("cat", "dog"), None),
    ],
)
def test_the_nearest_class_is_the_one_that_was_probably_meant(value: str, classes: tuple[str, ...], near: str | None):
    assert nearest(value, classes) == near
