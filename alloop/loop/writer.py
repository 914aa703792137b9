"""One writer at a time: the lease, its heartbeat, and who we are."""

import contextlib
import datetime as dt
import getpass
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator

from sqlalchemy import Engine

from alloop.errors import AlloopError, LeaseHeld
from alloop.store.session import transaction
from alloop.store.workspace import drop_lease, find_lease_holder, take_lease

TERM = dt.timedelta(seconds=120)
BEAT_SECONDS = 30.0
logger = logging.getLogger("alloop")


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

    A holder that was killed on this machine is recognised by its process id and replaced at once; one that died
    elsewhere is replaced when its lease expires.

    Raises:
        LeaseHeld: Somebody else is at work.
    """
    holder = f"{actor()} #{secrets.token_hex(4)}"
    with transaction(database) as session:
        current = find_lease_holder(session)
        if current is not None and _died_here(current):
            drop_lease(session, current)
        take_lease(session, holder, _now(), _now() + TERM)
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(database, holder, done), name="alloop-lease", daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        with transaction(database) as session:
            drop_lease(session, holder)


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
    """Whether the holder was a process of this machine that is no more."""
    before, _, after = holder.partition(" pid ")
    pid = after.split(" ", 1)[0]
    if before.rpartition("@")[2] != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
