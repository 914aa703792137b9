"""Status of a query from its answers. Pure functions."""

from collections.abc import Sequence

from alloop.consensus import Judge
from alloop.records import Answer, Outcome, QueryStatus


def settle(answers: Sequence[Answer], judge: Judge, annotations_per_image: int) -> QueryStatus:
    """Return the status of a query from all answers that its task has now.

    A vote counts more than an unknown label, an unknown label more than a skip, a skip more than an empty submission.
    Work that one person did is never hidden by work that another person declined.

    Args:
        answers: Current answers, without deleted ones.
        judge: Judge that decides which answers are votes.
        annotations_per_image: Number of different people who must answer.
    """
    voters = {answer.annotator for answer in answers if judge.vote(answer) is not None}
    outcomes = {answer.outcome for answer in answers}
    if voters:
        # After a file was replaced, other people would see another image, so the existing answers must be enough.
        is_over = len(voters) >= annotations_per_image or Outcome.OUTDATED in outcomes
        return QueryStatus.ANSWERED if is_over else QueryStatus.OPEN
    if Outcome.LABEL in outcomes:
        return QueryStatus.UNKNOWN
    if Outcome.SKIP in outcomes:
        return QueryStatus.SKIPPED
    if Outcome.EMPTY in outcomes:
        return QueryStatus.EMPTY
    return QueryStatus.WITHDRAWN if Outcome.OUTDATED in outcomes else QueryStatus.OPEN
