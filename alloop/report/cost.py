"""Cost of the labels: answers and people's time of each round, and of one more round."""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable

from alloop.names import count
from alloop.project import Project
from alloop.records import Outcome
from alloop.store.annotations import list_current
from alloop.store.queries import list_queries
from alloop.store.session import reading

UNKNOWN = "The labeling back end does not report how long an answer takes."


@dataclasses.dataclass(frozen=True, slots=True)
class RoundCost:
    """Row of a round, in words."""

    number: int
    answers: int
    seconds: str
    time: str


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Cost of all rounds in a sentence, and of each round."""

    says: str
    rounds: tuple[RoundCost, ...]


def gather_cost(project: Project) -> Cost:
    """Count the answers of each round, with the time that they took."""
    with reading(project.database) as session:
        numbers = {query.id: query.round_number for query in list_queries(session)}
        records = [one for one in list_current(session) if one.answer.outcome is not Outcome.DELETED]
    times: dict[int, list[float | None]] = defaultdict(list)
    for one in records:
        if one.query_id in numbers:
            times[numbers[one.query_id]].append(one.answer.lead_time)
    rounds = tuple(_row(number, seconds) for number, seconds in sorted(times.items()))
    return Cost(_words(seconds for each in times.values() for seconds in each), rounds)


def time_in_words(seconds: float) -> str:
    """Return a time in the unit that suits it: "40 s", "12 min", "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _row(number: int, seconds: list[float | None]) -> RoundCost:
    known = [one for one in seconds if one is not None]
    if not known:
        return RoundCost(number, len(seconds), "–", "–")
    median = statistics.median(known)
    return RoundCost(number, len(seconds), f"{median:.1f}", time_in_words(median * len(seconds)))


def _words(times: Iterable[float | None]) -> str:
    seconds = list(times)
    if not seconds:
        return "Nobody has answered yet."
    known = [one for one in seconds if one is not None]
    answers = count(len(seconds), "answer")
    if not known:
        return f"{answers} so far. {UNKNOWN}"
    median = statistics.median(known)
    return f"{answers} so far, about {time_in_words(median * len(seconds))} of work: {median:.2g} s an answer (median)."
