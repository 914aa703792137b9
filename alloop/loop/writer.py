"""Lease of the only writer, its heartbeat, and the name of this process for others."""

import contextlib
import dataclasses
import datetime as dt
import getpass
import hashlib
import logging
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from alloop.errors import AlloopError, LeaseHeld
from alloop.names import look
from alloop.processes import start_time
from alloop.store.session import transaction
from alloop.store.workspace import drop_lease, find_lease_holder, take_lease

TERM = dt.timedelta(seconds=120)
BEAT_SECONDS = 30.0
logger = logging.getLogger("alloop")
Clock = Callable[[], dt.datetime]


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """Permission to be the only alloop that writes to a workspace. Only `writer` makes one.

    Attributes:
        holder: Name under which the database knows this lease.
    """

    holder: str


def utc_now() -> dt.datetime:
    """Return the time now, in UTC."""
    return dt.datetime.now(dt.UTC)


def actor(person: str = "") -> str:
    """Return the user, machine and process at work, for the event log and for messages to others.

    Args:
        person: Name of the person for whom the process works, if it works for several.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        user = f"uid-{os.getuid()}"
    name = look(re.sub(r"\bpid\b|#", " ", person))  # both have a meaning in the name of a holder
    return f"{f'{name} as ' if name else ''}{user}@{socket.gethostname()} pid {os.getpid()}"


@contextlib.contextmanager
def writer(database: Engine, user: str, clock: Clock = utc_now) -> Iterator[Lease]:
    """Take the lease for the duration of the block, so that no other alloop changes this workspace.

    A holder that was killed on this machine is recognized by its process and replaced at once. A holder that died on
    another machine is replaced when its lease expires.

    Args:
        database: Database of the workspace.
        user: Name for messages to others, as `actor` gives it.
        clock: Function that returns the time now, in UTC.

    Raises:
        LeaseHeld: Another alloop holds the lease.
    """
    holder = f"{user} #{_machine()}.{start_time(os.getpid())}.{secrets.token_hex(4)}"
    with transaction(database) as session:
        current = find_lease_holder(session)
        if current is not None and _died_here(current):
            drop_lease(session, current)
        take_lease(session, holder, clock(), clock() + TERM)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(database, holder, clock, done), name="alloop-lease", daemon=True)
    heart.start()
    try:
        yield Lease(holder)
    finally:
        done.set()
        heart.join()
        with transaction(database) as session:
            drop_lease(session, holder)


def check_writer(session: Session, lease: Lease) -> None:
    """Check that the lease still holds, before work outside the database that only the writer may do.

    A machine that slept longer than the lease lasts continues in the middle of its work, while another alloop may have
    taken over.

    Raises:
        LeaseHeld: Another alloop has taken over, or the lease has ended.
    """
    if find_lease_holder(session) != lease.holder:
        raise LeaseHeld(
            "This command was paused for longer than its lease lasts, and another alloop has taken over.",
            "Run the command again; nothing is done twice.",
        )


def _beat(database: Engine, holder: str, clock: Clock, done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        try:
            with transaction(database) as session:
                take_lease(session, holder, clock(), clock() + TERM)
        except LeaseHeld:
            # Every change of state checks the old state, so two writers cannot both succeed.
            logger.warning("this alloop lost its lease; another one has taken over")
            return
        except AlloopError as error:
            logger.warning("the lease could not be renewed: %s", error.message)


def _died_here(holder: str) -> bool:
    """Return whether the holder was a process of this machine that has ended. In doubt it counts as running."""
    before, _, after = holder.partition(" pid ")
    pid, _, mark = after.partition(" #")
    machine, _, rest = mark.partition(".")
    if before.rpartition("@")[2] != socket.gethostname() or machine != _machine() or not pid.isdecimal():
        return False
    return start_time(int(pid)) != rest.partition(".")[0]


def _machine() -> str:
    """Return the id of the process namespace, since containers may share a host name and count processes from 1."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]  # noqa: PTH115
    return "local"
