"""Worth of people's answers about an image: which answers are votes, and the label that several votes agree on.

One judge for each task. A judge knows no rows.
"""

import collections
import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from alloop.composition import CLASSIFICATION
from alloop.names import as_class
from alloop.records import Answer, Consensus, Outcome


class Judge(Protocol):
    """Judge of the answers in one project: knows the project's classes, and the meaning of answers under its task."""

    def spelled(self, value: str) -> str:
        """Return the text of an answer with class names spelled as in the settings."""
        ...

    def is_known(self, value: str) -> bool:
        """Return whether the text of an answer can be a label: all names in it are classes of the project."""
        ...

    def vote(self, answer: Answer) -> str | None:
        """Return the label that an answer votes for; None if the answer is not a vote.

        The judge also decides here whether a submission without a choice is a vote.
        """
        ...

    def agree(self, answers: Sequence[Answer]) -> Consensus | None:
        """Return the label that the answers about one image agree on; None without a vote.

        Args:
            answers: Newest version of every answer, in any order. Deleted answers may be among them.
        """
        ...


class ClassificationJudge:
    """Judge of a classification. A vote names one class of the project; a submission without a class is not a vote."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = dict.fromkeys(classes)

    def spelled(self, value: str) -> str:
        return as_class(value, self._classes)

    def is_known(self, value: str) -> bool:
        return value in self._classes

    def vote(self, answer: Answer) -> str | None:
        return answer.value if answer.outcome is Outcome.LABEL and answer.value in self._classes else None

    def agree(self, answers: Sequence[Answer]) -> Consensus | None:
        return majority(answers, self.vote)


TASKS: Mapping[str, Callable[[Sequence[str]], Judge]] = {CLASSIFICATION: ClassificationJudge}


def majority(answers: Sequence[Answer], vote: Callable[[Answer], str | None]) -> Consensus | None:
    """Return the label that most annotators voted for; None without a vote.

    An annotator has one vote: the newest answer that has not been deleted. If that answer is not a vote, the annotator
    has none, even after an earlier vote. A tie goes to the label whose votes began first, since a later opinion of
    equal weight is no reason to change a label. At equal times, it goes to the first label in alphabetical order.

    Args:
        answers: About one image, one for each annotation as it is now, in any order.
        vote: Returns the label that an answer votes for, or None.

    Source: methods of Sheng, Provost & Ipeirotis, KDD 2008 (majority vote); the tie rule is alloop's.
    """
    votes = list_votes(answers, vote)
    if not votes:
        return None
    counts = collections.Counter(value for value, _ in votes)
    first, _ = min(votes, key=lambda pair: (-counts[pair[0]], pair[1].updated_at, pair[0]))
    return Consensus(first, counts[first] / len(votes), len(votes))


def list_votes(answers: Sequence[Answer], vote: Callable[[Answer], str | None]) -> list[tuple[str, Answer]]:
    """List the votes about one image, one of each annotator at most, with the answers that they come from."""
    return [(value, answer) for answer in _newest(answers) if (value := vote(answer)) is not None]


def _newest(answers: Sequence[Answer]) -> Iterable[Answer]:
    """Return the newest answer of each annotator that has not been deleted."""
    if len(answers) == 1:  # most images: there is nothing to compare
        return [answer for answer in answers if answer.outcome is not Outcome.DELETED]
    newest: dict[str, Answer] = {}
    for answer in sorted(answers, key=_age):
        if answer.outcome is not Outcome.DELETED:
            newest[answer.annotator] = answer
    return newest.values()


def _age(answer: Answer) -> tuple[dt.datetime, str]:
    return answer.updated_at, answer.external_id
