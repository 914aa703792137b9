"""Cost of the labels by round: answers, and people's time."""

import dataclasses
import statistics
from collections import defaultdict

from alloop.project import Project
from alloop.records import Outcome
from alloop.report.worth import duration
from alloop.store.annotations import list_current
from alloop.store.queries import list_queries
from alloop.store.session import reading


@dataclasses.dataclass(frozen=True, slots=True)
class RoundCost:
    """Row of a round, in words."""

    number: int
    answers: int
    seconds: str
    time: str


def gather_cost(project: Project) -> tuple[RoundCost, ...]:
    """Count the answers of each round, with the time that they took."""
    with reading(project.database) as session:
        numbers = {query.id: query.round_number for query in list_queries(session)}
        records = [one for one in list_current(session) if one.answer.outcome is not Outcome.DELETED]
    times: dict[int, list[float | None]] = defaultdict(list)
    for one in records:
        if one.query_id in numbers:
            times[numbers[one.query_id]].append(one.answer.lead_time)
    return tuple(_row(number, seconds) for number, seconds in sorted(times.items()))


def _row(number: int, seconds: list[float | None]) -> RoundCost:
    known = [one for one in seconds if one is not None]
    if not known:
        return RoundCost(number, len(seconds), "–", "–")
    median = statistics.median(known)
    return RoundCost(number, len(seconds), f"{median:.1f}", duration(median * len(seconds)))
