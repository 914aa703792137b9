"""One label from several people's answers."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloop.consensus import ClassificationJudge
from alloop.records import Answer, Consensus, Outcome

JUDGE = ClassificationJudge(("cat", "dog", "eel"))
NOON = dt.datetime(2025, 6, 1, 12, tzinfo=dt.UTC)


def _answer(annotator: str, value: str | None, minute: int = 0, outcome: Outcome = Outcome.LABEL) -> Answer:
    when = NOON + dt.timedelta(minutes=minute)
    return Answer(f"{annotator}-{minute}", annotator, outcome, value, when)


def test_the_class_with_most_votes_wins():
    answers = [_answer("ann", "cat", 1), _answer("bob", "dog", 0), _answer("cid", "cat", 2)]

    assert JUDGE.agree(answers) == Consensus("cat", 2 / 3, 3)


def test_only_the_newest_answer_of_an_annotator_counts():
    answers = [_answer("ann", "cat", 0), _answer("ann", "dog", 5)]

    assert JUDGE.agree(answers) == Consensus("dog", 1.0, 1)


def test_a_tie_goes_to_the_class_that_was_answered_first():
    assert JUDGE.agree([_answer("ann", "dog", 3), _answer("bob", "cat", 1)]) == Consensus("cat", 0.5, 2)


def test_a_tie_in_votes_and_time_goes_to_the_alphabet():
    assert JUDGE.agree([_answer("ann", "dog"), _answer("bob", "cat")]).value == "cat"


def test_a_later_skip_takes_the_vote_back():
    answers = [_answer("ann", "cat", 0), _answer("ann", None, 1, Outcome.SKIP), _answer("bob", "dog", 2)]

    assert JUDGE.agree(answers) == Consensus("dog", 1.0, 1)


def test_a_deleted_answer_lets_the_one_before_it_count():
    answers = [_answer("ann", "cat", 0), _answer("ann", "dog", 1, Outcome.DELETED)]

    assert JUDGE.agree(answers) == Consensus("cat", 1.0, 1)


@pytest.mark.parametrize("outcome", [Outcome.SKIP, Outcome.EMPTY, Outcome.DELETED])
def test_without_a_vote_there_is_no_label(outcome):
    assert JUDGE.agree([_answer("ann", None, 0, outcome)]) is None
    assert JUDGE.agree([]) is None


@given(
    votes=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["cat", "dog", "eel"]), st.integers(0, 9))),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_the_answers_does_not_matter(votes, order):
    answers = [_answer(who, value, minute) for who, value, minute in {(w, m): (w, v, m) for w, v, m in votes}.values()]
    shuffled = order.sample(answers, len(answers))

    assert JUDGE.agree(answers) == JUDGE.agree(shuffled)
