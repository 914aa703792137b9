"""What there is one of in a database: its identity, its log, its lease, its place in the labeling back end."""

import dataclasses
import datetime as dt
import uuid
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from alloop.errors import DatabaseError, LeaseHeld
from alloop.store.tables import Event, Lease, SyncState, Workspace

LEASE = "writer"


@dataclasses.dataclass(frozen=True, slots=True)
class Sync:
    """Our project in a labeling back end, and the mark up to which it has been pulled.

    Attributes:
        project_ref: How the back end calls it, as people see it there.
        identity: Tells it from projects of other servers that are called the same; empty where there are no others.
    """

    project_ref: str
    identity: str
    mark: str | None
    pulled_at: dt.datetime | None


def add_workspace(session: Session, now: dt.datetime) -> str:
    """Give a new database its identity; one that has it keeps it."""
    existing: str | None = session.scalar(select(Workspace.uuid))
    if existing is not None:
        return existing
    session.add(Workspace(id=1, uuid=uuid.uuid4().hex, created_at=now))
    session.flush()
    return find_workspace_uuid(session)


def find_workspace_uuid(session: Session) -> str:
    """The database's identity.

    Raises:
        DatabaseError: The database has none, so it is not one of alloop's.
    """
    found: str | None = session.scalar(select(Workspace.uuid))
    if found is None:
        raise DatabaseError("The database has no workspace row.", "Was it made by `alloop init`? Check [database] url.")
    return found


def key_prefix(session: Session) -> str:
    """The beginning of the keys of all tasks of this workspace; the number of a round follows."""
    return f"{find_workspace_uuid(session)[:12]}-r"


def add_event(
    session: Session, actor: str, kind: str, now: dt.datetime, round_number: int | None = None, **data: Any
) -> None:
    """Append to the log. `data` is JSON-able and holds no secret."""
    session.add(Event(at=now, actor=actor, kind=kind, round_number=round_number, data=data))
    session.flush()


def count_events(session: Session, kind: str) -> int:
    """How often this was logged."""
    return session.scalar(select(func.count()).select_from(Event).where(Event.kind == kind)) or 0


def list_events(session: Session, kind: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """The newest events, newest first."""
    query = select(Event).order_by(Event.id.desc()).limit(limit)
    if kind is not None:
        query = query.where(Event.kind == kind)
    return [
        {"at": row.at.isoformat(), "actor": row.actor, "kind": row.kind, "round": row.round_number, "data": row.data}
        for row in session.scalars(query)
    ]


def list_last_events(session: Session, kind: str) -> dict[int, dict[str, Any]]:
    """Round → data of its newest event of this kind."""
    query = select(Event.round_number, Event.data).where(Event.kind == kind).order_by(Event.id)
    return {number: data for number, data in session.execute(query) if number is not None}


def take_lease(session: Session, holder: str, now: dt.datetime, expires_at: dt.datetime) -> None:
    """Become the only writer, or renew.

    Raises:
        LeaseHeld: Somebody else is, and has not let it expire.
    """
    row = session.get(Lease, LEASE)
    if row is None:
        try:
            with session.begin_nested():
                session.execute(insert(Lease).values(name=LEASE, holder=holder, acquired_at=now, expires_at=expires_at))
        except IntegrityError:
            row = session.get(Lease, LEASE)
        else:
            return
    if row is None:
        raise LeaseHeld("Another alloop took the lease this instant.", "Try again in a moment.")
    taken = session.execute(
        update(Lease)
        .where(Lease.name == LEASE, (Lease.holder == holder) | (Lease.expires_at <= now))
        .values(holder=holder, acquired_at=row.acquired_at if row.holder == holder else now, expires_at=expires_at)
    )
    if taken.rowcount == 0:  # type: ignore[attr-defined]
        raise LeaseHeld(
            f"Another alloop is working on this workspace: {row.holder.partition(' #')[0]}, since "
            f"{row.acquired_at:%H:%M:%S} UTC.",
            f"Wait for it to end; if it is dead, its lease expires at {row.expires_at:%H:%M:%S} UTC.",
        )


def find_lease_holder(session: Session) -> str | None:
    """Who is, or was last, the writer."""
    row = session.get(Lease, LEASE)
    return None if row is None else row.holder


def drop_lease(session: Session, holder: str) -> None:
    """Stop being the writer."""
    session.execute(delete(Lease).where(Lease.name == LEASE, Lease.holder == holder))


def find_sync(session: Session, source: str) -> Sync | None:
    """Our project in this back end, if there is one yet."""
    row = session.get(SyncState, source)
    return None if row is None else Sync(row.project_ref, row.identity, row.mark, row.pulled_at)


def set_project(session: Session, source: str, project_ref: str, identity: str = "") -> None:
    """Remember our project; pulling starts over when it is another one than before."""
    row = session.get(SyncState, source)
    if row is None:
        session.add(SyncState(source=source, project_ref=project_ref, identity=identity, mark=None, pulled_at=None))
    elif (row.project_ref, row.identity) != (project_ref, identity):
        row.project_ref, row.identity, row.mark = project_ref, identity, None
    session.flush()


def drop_sync(session: Session, source: str) -> None:
    """Forget our project, so that the next push makes a new one."""
    session.execute(delete(SyncState).where(SyncState.source == source))


def set_mark(session: Session, source: str, mark: str | None, now: dt.datetime) -> None:
    """Remember how far a pull has come."""
    values: dict[str, Any] = {"pulled_at": now} if mark is None else {"mark": mark, "pulled_at": now}
    session.execute(update(SyncState).where(SyncState.source == source).values(**values))
