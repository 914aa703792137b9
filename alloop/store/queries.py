"""Queries of a round: the images asked about, the reasons, and the task of each query."""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Select, delete, func, insert, select, update
from sqlalchemy.orm import Session

from alloop.records import Query, QueryStatus, Reason, Split
from alloop.store.session import in_chunks
from alloop.store.tables import Image, Label, QueryRow, Round, Task


@dataclasses.dataclass(frozen=True, slots=True)
class QueryRecord:
    """Stored query, with its task if it has one. `gone` means that the task was deleted in the back end."""

    id: int
    key: str
    round_number: int
    image_id: int
    sha256: str
    status: QueryStatus
    reason: Reason
    strategy: str
    rank: int
    score: float | None
    probability: float | None
    predicted: str | None
    confidence: float | None
    suspect: bool
    draw_number: int | None
    draw_pool: int | None
    settled_at: dt.datetime | None
    task_id: str | None
    gone: bool


def add_queries(session: Session, round_id: int, picks: Sequence[Query], key_prefix: str, now: dt.datetime) -> None:
    """Add the queries of a batch, all of them open. Their keys are `{key_prefix}-{image_id}`."""
    rows = [
        {
            "key": f"{key_prefix}-{pick.image_id}",
            "round_id": round_id,
            "image_id": pick.image_id,
            "status": QueryStatus.OPEN.value,
            "reason": pick.reason.value,
            "strategy": pick.strategy,
            "rank": pick.rank,
            "score": pick.score,
            "probability": pick.probability,
            "predicted": pick.predicted,
            "confidence": pick.confidence,
            "suspect": pick.suspect,
            "draw_number": pick.draw_number,
            "draw_pool": pick.draw_pool,
            "created_at": now,
        }
        for pick in picks
    ]
    if rows:
        session.execute(insert(QueryRow), rows)


def list_queries(
    session: Session,
    round_id: int | None = None,
    status: QueryStatus | None = None,
    image_id: int | None = None,
) -> list[QueryRecord]:
    """List queries by round and rank: all, or those of a round, a status and an image."""
    query = _query()
    if image_id is not None:
        query = query.where(QueryRow.image_id == image_id)
    if round_id is not None:
        query = query.where(QueryRow.round_id == round_id)
    if status is not None:
        query = query.where(QueryRow.status == status.value)
    return _records(session, query)


def list_suspects(session: Session) -> list[QueryRecord]:
    """List the open queries about images that look unlike the rest of the pool, by round and rank."""
    return _records(session, _query().where(QueryRow.status == QueryStatus.OPEN.value, QueryRow.suspect))


def list_unsent(session: Session) -> list[QueryRecord]:
    """List the open queries without a task, of all rounds, by round and rank."""
    return _records(session, _query().where(QueryRow.status == QueryStatus.OPEN.value, Task.id.is_(None)))


def list_pushed(session: Session, source: str, project_ref: str) -> dict[str, QueryRecord]:
    """Return task id → query, for all tasks that are not recorded as deleted."""
    query = _query().where(Task.source == source, Task.project_ref == project_ref, Task.gone_at.is_(None))
    return {record.task_id: record for record in _records(session, query) if record.task_id is not None}


def find_by_keys(session: Session, keys: Iterable[str]) -> dict[str, QueryRecord]:
    """Return key → query for keys of this database."""
    found: dict[str, QueryRecord] = {}
    for chunk in in_chunks(keys):
        for record in _records(session, _query().where(QueryRow.key.in_(chunk))):
            found[record.key] = record
    return found


def add_tasks(session: Session, source: str, project_ref: str, tasks: Mapping[int, str], now: dt.datetime) -> None:
    """Record the tasks of queries: query id → task id."""
    rows = [
        {"query_id": query_id, "source": source, "project_ref": project_ref, "external_id": task_id, "pushed_at": now}
        for query_id, task_id in tasks.items()
    ]
    if rows:
        session.execute(insert(Task), rows)


def set_task_ids(session: Session, tasks: Mapping[int, str]) -> None:
    """Correct the recorded tasks of queries: query id → task id."""
    for query_id, task_id in tasks.items():
        session.execute(update(Task).where(Task.query_id == query_id).values(external_id=task_id))


def set_tasks_gone(session: Session, query_ids: Sequence[int], now: dt.datetime) -> None:
    """Record that the tasks of these queries no longer exist."""
    for chunk in in_chunks(query_ids):
        session.execute(update(Task).where(Task.query_id.in_(chunk)).values(gone_at=now))


def set_keys(session: Session, keys: Mapping[int, str]) -> None:
    """Give queries new keys: query id → key."""
    for query_id, key in keys.items():
        session.execute(update(QueryRow).where(QueryRow.id == query_id).values(key=key))


def drop_open_tasks(session: Session, source: str) -> int:
    """Drop the tasks of open queries, so that the queries are pushed again; return the number of tasks."""
    is_open = select(QueryRow.id).where(QueryRow.status == QueryStatus.OPEN.value)
    dropped = session.execute(delete(Task).where(Task.source == source, Task.query_id.in_(is_open)))
    return int(dropped.rowcount)  # type: ignore[attr-defined]


def count_open_by_source(session: Session) -> dict[str, int]:
    """Count the open queries that have a task, by back end."""
    query = (
        select(Task.source, func.count())
        .join(QueryRow, QueryRow.id == Task.query_id)
        .where(QueryRow.status == QueryStatus.OPEN.value, Task.gone_at.is_(None))
        .group_by(Task.source)
        .order_by(Task.source)
    )
    return {source: n for source, n in session.execute(query)}


def set_status(session: Session, query_id: int, status: QueryStatus, now: dt.datetime) -> None:
    """Set the status of a query."""
    settled_at = None if status is QueryStatus.OPEN else now
    session.execute(update(QueryRow).where(QueryRow.id == query_id).values(status=status.value, settled_at=settled_at))


def has_open_query(session: Session, image_id: int) -> bool:
    """Return whether the image has an open query."""
    where = (QueryRow.image_id == image_id, QueryRow.status == QueryStatus.OPEN.value)
    return session.scalar(select(QueryRow.id).where(*where).limit(1)) is not None


def list_open_images(session: Session) -> set[int]:
    """List the images with an open query."""
    return set(session.scalars(select(QueryRow.image_id).where(QueryRow.status == QueryStatus.OPEN.value)))


def list_asked_images(session: Session, reason: Reason) -> set[int]:
    """List the images with a query of this reason that was not withdrawn."""
    where = (QueryRow.reason == reason.value, QueryRow.status != QueryStatus.WITHDRAWN.value)
    return set(session.scalars(select(QueryRow.image_id).where(*where)))


def count_by_hand(session: Session) -> int:
    """Count the labels to train on whose image was asked for by hand."""
    asked = select(QueryRow.image_id).where(
        QueryRow.reason == Reason.MANUAL.value, QueryRow.status != QueryStatus.WITHDRAWN.value
    )
    query = select(func.count()).select_from(Label).join(Image, Image.id == Label.image_id)
    return session.scalar(query.where(Image.split == Split.TRAIN.value, Label.image_id.in_(asked))) or 0


def list_ever_asked(session: Session) -> set[int]:
    """List the images that have a query, withdrawn or not."""
    return set(session.scalars(select(QueryRow.image_id)))


def list_first_reasons(session: Session) -> dict[int, Reason]:
    """Return image → reason of its first query, in the order asked. Withdrawn queries do not count.

    An image that was also asked for by hand counts as asked for by hand: its label may have come that way.
    """
    query = (
        select(QueryRow.image_id, QueryRow.reason)
        .join(Round, Round.id == QueryRow.round_id)
        .where(QueryRow.status != QueryStatus.WITHDRAWN.value)
        .order_by(Round.number, QueryRow.rank)
    )
    reasons: dict[int, Reason] = {}
    for image_id, reason in session.execute(query):
        if reasons.setdefault(image_id, Reason(reason)) is not Reason.MANUAL and reason == Reason.MANUAL.value:
            reasons[image_id] = Reason.MANUAL
    return reasons


def list_skipped_images(session: Session) -> dict[int, int]:
    """Return image → number of the last round in which somebody skipped it."""
    query = (
        select(QueryRow.image_id, func.max(Round.number))
        .join(Round, Round.id == QueryRow.round_id)
        .where(QueryRow.status == QueryStatus.SKIPPED.value)
        .group_by(QueryRow.image_id)
    )
    return {image_id: number for image_id, number in session.execute(query)}


def count_by_status(session: Session, round_id: int) -> dict[QueryStatus, int]:
    """Count the queries of a round by status."""
    query = select(QueryRow.status, func.count()).where(QueryRow.round_id == round_id).group_by(QueryRow.status)
    return {QueryStatus(status): n for status, n in session.execute(query)}


def count_all_by_status(session: Session) -> dict[int, dict[QueryStatus, int]]:
    """Count the queries of every round by status: round id → status → number, in the order of `QueryStatus`."""
    query = select(QueryRow.round_id, QueryRow.status, func.count()).group_by(QueryRow.round_id, QueryRow.status)
    found = {(round_id, QueryStatus(status)): n for round_id, status, n in session.execute(query)}
    rounds = {round_id for round_id, _ in found}
    return {one: {status: found[one, status] for status in QueryStatus if (one, status) in found} for one in rounds}


def list_confidences(session: Session, reason: Reason) -> dict[int, list[float]]:
    """List the model's confidences in the images asked about for this reason: round id → confidences, by rank."""
    query = select(QueryRow.round_id, QueryRow.confidence).where(QueryRow.reason == reason.value)
    ordered = query.order_by(QueryRow.round_id, QueryRow.rank)
    found: dict[int, list[float]] = {}
    for round_id, confidence in session.execute(ordered):
        if confidence is not None:
            found.setdefault(round_id, []).append(confidence)
    return found


def count_rounds_asked(session: Session) -> int:
    """Count the rounds that have queries."""
    return session.scalar(select(func.count(QueryRow.round_id.distinct()))) or 0


def _query() -> "Select[QueryRow, int, str, str | None, dt.datetime | None]":
    return (
        select(QueryRow, Round.number, Image.sha256, Task.external_id, Task.gone_at)
        .join(Round, Round.id == QueryRow.round_id)
        .join(Image, Image.id == QueryRow.image_id)
        .outerjoin(Task, Task.query_id == QueryRow.id)
        .order_by(Round.number, QueryRow.rank)
    )


def _records(
    session: Session, query: "Select[QueryRow, int, str, str | None, dt.datetime | None]"
) -> list[QueryRecord]:
    return [
        QueryRecord(
            id=row.id,
            key=row.key,
            round_number=number,
            image_id=row.image_id,
            sha256=sha256,
            status=QueryStatus(row.status),
            reason=Reason(row.reason),
            strategy=row.strategy,
            rank=row.rank,
            score=row.score,
            probability=row.probability,
            predicted=row.predicted,
            confidence=row.confidence,
            suspect=row.suspect,
            draw_number=row.draw_number,
            draw_pool=row.draw_pool,
            settled_at=row.settled_at,
            task_id=task_id,
            gone=gone_at is not None,
        )
        for row, number, sha256, task_id, gone_at in session.execute(query)
    ]
