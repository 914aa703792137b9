"""Table of rounds."""

import dataclasses

from alloop.report.gather import RoundReport, StatusReport
from alloop.report.headlines import gain_of, interval_of
from alloop.report.shown import Shown


@dataclasses.dataclass(frozen=True, slots=True)
class RoundRow:
    """Row of a round, in words."""

    number: int
    labels: str
    metrics: tuple[str, ...]
    over_random: str
    answered: str
    state: str


def round_rows(status: StatusReport, shown: Shown) -> tuple[RoundRow, ...]:
    """Return the rounds, the newest first."""
    return tuple(_row(row, shown) for row in reversed(status.rounds))


def _row(row: RoundReport, shown: Shown) -> RoundRow:
    asked, open_ = sum(row.queries.values()), row.queries.get("open", 0)
    answered = f"{asked - open_} of {asked}"
    is_said = row.closed_because == f"{answered} images answered"  # by the column before
    return RoundRow(
        number=row.number,
        labels="–" if row.n_labels is None else str(row.n_labels),
        metrics=tuple(interval_of(row.metrics.get(each.name), each.factor, each.digits) for each in shown.metrics),
        over_random=gain_of(row.over_random),
        answered=answered,
        state=row.state if is_said else row.closed_because or row.state,
    )
