"""Details of one image: probabilities, places of its file, and its history."""

import dataclasses
import datetime as dt

import numpy as np
from sqlalchemy.orm import Session

from alloop.engine.score_file import read_matrix
from alloop.errors import ModelError
from alloop.loop.asking import by_hand, junk
from alloop.project import Project
from alloop.records import Outcome, QueryStatus, Reason
from alloop.report.gather import find_label_place
from alloop.serve.snapshot import Snapshot
from alloop.store.annotations import list_current
from alloop.store.images import find_places
from alloop.store.queries import QueryRecord, list_queries
from alloop.store.session import reading
from alloop.store.workspace import list_events

TOP = 5
NEWEST = 1000  # events of a kind that are looked through
BY_HAND = {
    by_hand.ASKED: "Asked for by hand",
    by_hand.TAKEN_BACK: "The question was taken back",
    junk.MARKED: "Marked as junk",
    junk.UNMARKED: "The mark as junk was removed",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """Class with its calibrated probability."""

    name: str
    value: float


@dataclasses.dataclass(frozen=True, slots=True)
class Details:
    """Content of the page of one image, beside its row in the pool.

    Attributes:
        task_at: Address of the open task about it; None if there is none, or its address is not known.
    """

    shares: tuple[Share, ...]
    history: tuple[str, ...]
    places: tuple[str, ...]
    task_at: str | None


def find_details(project: Project, pool: Snapshot, image_id: int) -> Details:
    """Read the details of an image."""
    with reading(project.database) as session:
        queries = list_queries(session, image_id=image_id)
        answers = [record.answer for record in list_current(session, image_ids=[image_id])]
        places = [f"{place.path} ({place.status})" for place in find_places(session, [image_id]).get(image_id, [])]
        decided = _by_hand(session, image_id)
    said: list[tuple[dt.datetime | None, str]] = [(None, _asked(query)) for query in queries]
    for answer in answers:
        if answer.outcome is not Outcome.DELETED:
            what = answer.value or answer.outcome.value
            said.append((answer.updated_at, f"{answer.annotator}: {what}, {answer.updated_at:%Y-%m-%d %H:%M} UTC"))
    tasks = [query.task_id for query in queries if query.status is QueryStatus.OPEN and not query.gone]
    task_at = find_label_place(project, tasks[0]) if tasks and tasks[0] is not None else None
    history = (*(words for _, words in said), *decided)
    return Details(_shares(project, pool, image_id), history, tuple(places), task_at)


def _by_hand(session: Session, image_id: int) -> list[str]:
    """Return who asked for the image or marked it as junk, and when, oldest first."""
    events = [event for kind in BY_HAND for event in list_events(session, kind, NEWEST)]
    mine = [event for event in events if image_id in event["data"]["images"]]
    said = []
    for event in sorted(mine, key=lambda event: str(event["at"])):
        who, reason = str(event["actor"]).partition(" pid ")[0], event["data"].get("reason")
        why = f" ({reason})" if reason else ""
        said.append(f"{BY_HAND[event['kind']]} by {who}, {event['at'][:16].replace('T', ' ')} UTC{why}")
    return said


def _shares(project: Project, pool: Snapshot, image_id: int) -> tuple[Share, ...]:
    at = pool.place(image_id)
    if pool.scored.round_number is None or at is None or not pool.scored.predicted[at]:
        return ()
    try:
        rows = read_matrix(
            project.paths.scores(pool.scored.round_number), "log_probs", np.array([image_id], dtype=np.int64)
        )
    except ModelError:  # its files were deleted meanwhile
        return ()
    probs = np.exp(rows[0]).tolist()
    ordered = sorted(zip(pool.scored.classes, probs, strict=True), key=lambda pair: -pair[1])
    return tuple(Share(name, value) for name, value in ordered[:TOP])


def _asked(query: QueryRecord) -> str:
    how = "drawn at random" if query.strategy == "random" else f"chosen by {query.strategy}"
    how = "asked for by hand" if query.reason is Reason.MANUAL else how
    guess = f"; the model guessed {query.predicted}" if query.predicted else ""
    asked = f"Round {query.round_number} asked about it as number {query.rank}, {how} ({query.reason})"
    return f"{asked}: {query.status}{guess}."
