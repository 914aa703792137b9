"""One writer at a time: the lease, its heartbeat, and who we are."""

import contextlib
import contextvars
import datetime as dt
import getpass
import hashlib
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from alloop.errors import AlloopError, LeaseHeld
from alloop.processes import start_time
from alloop.store.session import transaction
from alloop.store.workspace import drop_lease, find_lease_holder, take_lease

TERM = dt.timedelta(seconds=120)
BEAT_SECONDS = 30.0
logger = logging.getLogger("alloop")
_holder: contextvars.ContextVar[str | None] = contextvars.ContextVar("holder", default=None)


def actor() -> str:
    """Who is at work: for the log and for the message that others get."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()} pid {os.getpid()}"


@contextlib.contextmanager
def writer(database: Engine) -> Iterator[None]:
    """Be the only alloop that changes this workspace, for as long as the block lasts.

    A holder that was killed on this machine is recognised by its process and replaced at once; one that died elsewhere
    is replaced when its lease expires.

    Raises:
        LeaseHeld: Somebody else is at work.
    """
    holder = f"{actor()} #{_machine()}.{start_time(os.getpid())}.{secrets.token_hex(4)}"
    with transaction(database) as session:
        current = find_lease_holder(session)
        if current is not None and _died_here(current):
            drop_lease(session, current)
        take_lease(session, holder, _now(), _now() + TERM)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(database, holder, done), name="alloop-lease", daemon=True)
    heart.start()
    token = _holder.set(holder)
    try:
        yield
    finally:
        _holder.reset(token)
        done.set()
        heart.join()
        with transaction(database) as session:
            drop_lease(session, holder)


def check_writer(session: Session) -> None:
    """Make sure that the lease is still ours, before something that only the writer may do outside the database.

    A machine that slept longer than the lease lasts wakes up in the middle of its work, and another alloop may have
    taken over. Outside `writer` there is nothing to check.

    Raises:
        LeaseHeld: Another one has.
    """
    holder = _holder.get()
    if holder is not None and find_lease_holder(session) != holder:
        raise LeaseHeld(
            "This command was paused for longer than its lease lasts, and another alloop has taken over.",
            "Run the command again; nothing is done twice.",
        )


def _beat(database: Engine, holder: str, done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        try:
            with transaction(database) as session:
                take_lease(session, holder, _now(), _now() + TERM)
        except LeaseHeld:
            # Every change of state checks the old state, so whoever took over and we cannot both win.
            logger.warning("this alloop lost its lease; another one has taken over")
            return
        except AlloopError as error:
            logger.warning("the lease could not be renewed: %s", error.message)


def _died_here(holder: str) -> bool:
    """Whether the holder was a process of this machine that is no more. In doubt it is taken to live."""
    before, _, after = holder.partition(" pid ")
    pid, _, mark = after.partition(" #")
    machine, _, rest = mark.partition(".")
    if before.rpartition("@")[2] != socket.gethostname() or machine != _machine() or not pid.isdecimal():
        return False
    return start_time(int(pid)) != rest.partition(".")[0]


def _machine() -> str:
    """Where process ids mean the same: containers may share a name, and every one counts its processes from 1."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]  # noqa: PTH115
    return "local"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
