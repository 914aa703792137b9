"""Which state may follow which, and how a query stands. Pure."""

from collections.abc import Collection, Sequence

from alloop.records import Outcome, QueryStatus, RoundState

NEXT = {
    RoundState.CREATED: RoundState.TRAINED,
    RoundState.TRAINED: RoundState.SCORED,
    RoundState.SCORED: RoundState.SELECTED,
    RoundState.SELECTED: RoundState.PUSHED,
    RoundState.PUSHED: RoundState.CLOSED,
}


def settle(
    answers: Sequence[tuple[str, Outcome, str | None]], classes: Collection[str], annotations_per_image: int
) -> QueryStatus:
    """What became of a query, from everything its task holds now.

    A known class counts more than an unknown one, that more than a skip, that more than an empty submission: work that
    somebody did is never hidden by work that somebody declined.

    Args:
        answers: (annotator, outcome, value) of each current annotation; tombstones left out.
        classes: The classes that may be answered.
        annotations_per_image: How many different people must answer.
    """
    labels = {who for who, outcome, value in answers if outcome is Outcome.LABEL and value in classes}
    outcomes = {outcome for _, outcome, _ in answers}
    if labels:
        # After a file was replaced, further people would see another image: the answers so far have to be enough.
        is_over = len(labels) >= annotations_per_image or Outcome.OUTDATED in outcomes
        return QueryStatus.ANSWERED if is_over else QueryStatus.OPEN
    if Outcome.LABEL in outcomes:
        return QueryStatus.UNKNOWN
    if Outcome.SKIP in outcomes:
        return QueryStatus.SKIPPED
    if Outcome.EMPTY in outcomes:
        return QueryStatus.EMPTY
    return QueryStatus.WITHDRAWN if Outcome.OUTDATED in outcomes else QueryStatus.OPEN
