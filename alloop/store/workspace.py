"""Single facts of a database: its identity, log, lease, and project in the labeling back end."""

import dataclasses
import datetime as dt
import secrets
import uuid
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from alloop.errors import DatabaseError, LeaseHeld
from alloop.store.tables import Annotation, Event, ImageLocation, LeaseRow, SyncState, Workspace

LEASE = "writer"


@dataclasses.dataclass(frozen=True, slots=True)
class Sync:
    """Project of this workspace in a labeling back end, and the mark up to which it has been pulled.

    Attributes:
        project_ref: Name of the project in the back end, as people see it.
        identity: Identity that differs from that of projects with the same name on other servers; may be empty.
        last_push: Random id of our last push to the project; None before the first.
        next_push: Id of a later push that has started and may have been interrupted.
        n_orphaned: Number of tasks that this workspace made but its database does not know, at the last pull.
        n_foreign: Number of tasks of other workspaces in the project, at the last pull.
    """

    project_ref: str
    identity: str
    mark: str | None
    pulled_at: dt.datetime | None
    last_push: str | None
    next_push: str | None
    n_orphaned: int
    n_foreign: int


def add_workspace(session: Session, now: dt.datetime) -> str:
    """Give a new database its identity. An existing identity is kept."""
    existing: str | None = session.scalar(select(Workspace.uuid))
    if existing is not None:
        return existing
    session.add(Workspace(id=1, uuid=uuid.uuid4().hex, created_at=now))
    session.flush()
    return find_workspace_uuid(session)


def renew_workspace_uuid(session: Session) -> None:
    """Give the database a new identity, different from that of its copies."""
    session.execute(update(Workspace).values(uuid=uuid.uuid4().hex))


def find_workspace_uuid(session: Session) -> str:
    """Find the identity of the database.

    Raises:
        DatabaseError: The database has no identity, so alloop did not make it.
    """
    found: str | None = session.scalar(select(Workspace.uuid))
    if found is None:
        raise DatabaseError("The database has no workspace row.", "Was it made by `alloop init`? Check [database] url.")
    return found


def key_prefix(session: Session) -> str:
    """Return the beginning of the keys of all tasks of this workspace. The number of a round follows it."""
    return f"{find_workspace_uuid(session)[:12]}-r"


def new_key_prefix(session: Session, round_number: int) -> str:
    """Return a random beginning of keys that no task has had. A seed would repeat after a restore and in a copy."""
    return f"{key_prefix(session)}{round_number}-{secrets.token_hex(4)}"


def find_near_copies(session: Session) -> str | None:
    """Return the setting that near copies were grouped with; None before the first grouping, or if not recorded."""
    found: str | None = session.scalar(select(Workspace.near_copies))
    return found


def set_near_copies(session: Session, setting: str) -> None:
    """Record the setting that near copies were grouped with."""
    session.execute(update(Workspace).values(near_copies=setting))


def add_event(
    session: Session, actor: str, kind: str, now: dt.datetime, round_number: int | None = None, **data: Any
) -> None:
    """Append to the log. `data` is JSON-able and holds no secret."""
    session.add(Event(at=now, actor=actor, kind=kind, round_number=round_number, data=data))
    session.flush()


def list_events(session: Session, kind: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """List the newest events for people to read, newest first. The program reads no fact from the log."""
    query = select(Event).order_by(Event.id.desc()).limit(limit)
    if kind is not None:
        query = query.where(Event.kind == kind)
    return [
        {"at": row.at.isoformat(), "actor": row.actor, "kind": row.kind, "round": row.round_number, "data": row.data}
        for row in session.scalars(query)
    ]


def find_newest(session: Session) -> tuple[int | None, int | None, dt.datetime | None]:
    """Return what grows with every change that people should see: newest log entry, newest answer, look at files."""
    newest = (func.max(Event.id), func.max(Annotation.id), func.max(ImageLocation.seen_at))
    event, annotation, seen = (session.scalar(select(one)) for one in newest)
    return event, annotation, seen


def take_lease(session: Session, holder: str, now: dt.datetime, expires_at: dt.datetime) -> None:
    """Take the lease of the only writer, or renew it.

    Raises:
        LeaseHeld: Another process holds a lease that has not expired.
    """
    row = session.get(LeaseRow, LEASE)
    if row is None:
        try:
            with session.begin_nested():
                session.execute(
                    insert(LeaseRow).values(name=LEASE, holder=holder, acquired_at=now, expires_at=expires_at)
                )
        except IntegrityError:
            row = session.get(LeaseRow, LEASE)
        else:
            return
    if row is None:
        raise LeaseHeld("Another alloop took the lease at the same moment.", "Try again in a moment.")
    taken = session.execute(
        update(LeaseRow)
        .where(LeaseRow.name == LEASE, (LeaseRow.holder == holder) | (LeaseRow.expires_at <= now))
        .values(holder=holder, acquired_at=row.acquired_at if row.holder == holder else now, expires_at=expires_at)
    )
    if taken.rowcount == 0:  # type: ignore[attr-defined]
        raise LeaseHeld(
            f"Another alloop is working on this workspace: {row.holder.partition(' #')[0]}, since "
            f"{row.acquired_at:%H:%M:%S} UTC.",
            f"Wait for it to end. If it is no longer running, its lease expires at {row.expires_at:%H:%M:%S} UTC.",
        )


def find_lease_holder(session: Session) -> str | None:
    """Find the present or last holder of the lease."""
    row = session.get(LeaseRow, LEASE)
    return None if row is None else row.holder


def drop_lease(session: Session, holder: str) -> None:
    """Release the lease."""
    session.execute(delete(LeaseRow).where(LeaseRow.name == LEASE, LeaseRow.holder == holder))


def find_sync(session: Session, source: str) -> Sync | None:
    """Find the project of this workspace in a back end; None before the first push."""
    row = session.get(SyncState, source)
    if row is None:
        return None
    return Sync(
        project_ref=row.project_ref,
        identity=row.identity,
        mark=row.mark,
        pulled_at=row.pulled_at,
        last_push=row.last_push,
        next_push=row.next_push,
        n_orphaned=row.n_orphaned or 0,
        n_foreign=row.n_foreign or 0,
    )


def set_project(session: Session, source: str, project_ref: str, identity: str = "") -> None:
    """Store the project of this workspace. If the project changes, pulling starts from the beginning."""
    row = session.get(SyncState, source)
    if row is None:
        session.add(SyncState(source=source, project_ref=project_ref, identity=identity, mark=None, pulled_at=None))
    elif (row.project_ref, row.identity) != (project_ref, identity):
        row.project_ref, row.identity, row.mark = project_ref, identity, None
        row.last_push = row.next_push = row.n_orphaned = row.n_foreign = None
    session.flush()


def set_next_push(session: Session, source: str, push_id: str) -> None:
    """Record the id of a push that is about to begin."""
    session.execute(update(SyncState).where(SyncState.source == source).values(next_push=push_id))


def set_last_push(session: Session, source: str, push_id: str) -> None:
    """Record the id of the last push, as stored in the project."""
    session.execute(update(SyncState).where(SyncState.source == source).values(last_push=push_id, next_push=None))


def set_strangers(session: Session, source: str, orphaned: int, foreign: int) -> None:
    """Record the numbers of tasks in the project that this database does not know."""
    counted = {"n_orphaned": orphaned, "n_foreign": foreign}
    session.execute(update(SyncState).where(SyncState.source == source).values(**counted))


def drop_sync(session: Session, source: str) -> None:
    """Delete the reference to the project, so that the next push creates a new one."""
    session.execute(delete(SyncState).where(SyncState.source == source))


def set_mark(session: Session, source: str, mark: str | None, now: dt.datetime) -> None:
    """Store the mark up to which tasks have been pulled."""
    values: dict[str, Any] = {"pulled_at": now} if mark is None else {"mark": mark, "pulled_at": now}
    session.execute(update(SyncState).where(SyncState.source == source).values(**values))
