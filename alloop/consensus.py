"""Several people's answers about one image to one label with a measure of agreement. Knows no rows."""

import collections
import dataclasses
import datetime as dt
from collections.abc import Iterable

from alloop.records import Answer, Outcome


@dataclasses.dataclass(frozen=True, slots=True)
class Consensus:
    """What the answers about one image amount to.

    Attributes:
        label: The class to train on; None without a vote.
        agreement: Share of the votes that are for `label`, in (0, 1]; 0 without a vote.
        n: Votes, one per annotator who named a class.
    """

    label: str | None
    agreement: float
    n: int


def majority(answers: Iterable[Answer]) -> Consensus:
    """The class that most annotators chose; between equals, the one that reached its votes with the earlier first vote.

    An annotator has one vote: their newest answer that has not been deleted. If that is a skip or empty, they have no
    vote, also if they named a class before. A tie goes to the class that was answered first, since a later opinion
    of equal weight is no reason to change a label; should even the times be equal, to the first in alphabetical order.

    Args:
        answers: About one image, one for each annotation as it is now, in any order.

    Source: methods of Sheng, Provost & Ipeirotis, KDD 2008 (majority vote); the tie rule is alloop's.
    """
    newest: dict[str, Answer] = {}
    for answer in sorted(answers, key=_age):
        if answer.outcome is not Outcome.DELETED:
            newest[answer.annotator] = answer
    votes = [answer for answer in newest.values() if answer.outcome is Outcome.LABEL and answer.value is not None]
    if not votes:
        return Consensus(None, 0.0, 0)
    counts = collections.Counter(answer.value for answer in votes)
    first = min(votes, key=lambda answer: (-counts[answer.value], answer.updated_at, answer.value or ""))
    return Consensus(first.value, counts[first.value] / len(votes), len(votes))


def _age(answer: Answer) -> tuple[dt.datetime, str]:
    return answer.updated_at, answer.external_id
