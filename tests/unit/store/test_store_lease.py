"""One writer at a time: refusal that names the holder, expiry, and holders that died."""

import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from factories import NOW
from sqlalchemy import Engine, text

from alloop.errors import LeaseHeld
from alloop.loop import writer as writer_module
from alloop.loop.writer import actor, writer
from alloop.store.session import reading, transaction
from alloop.store.workspace import drop_lease, find_lease_holder, take_lease

TERM = dt.timedelta(seconds=120)


def take(database: Engine, holder: str, now: dt.datetime = NOW) -> None:
    with transaction(database) as session:
        take_lease(session, holder, now, now + TERM)


def holder_of(database: Engine) -> str | None:
    with reading(database) as session:
        return find_lease_holder(session)


def test_a_second_holder_is_refused_and_told_who_the_first_is(database: Engine):
    take(database, "ada@desk pid 1")

    with pytest.raises(LeaseHeld, match=r"ada@desk pid 1, since 03:04:05 UTC") as caught:
        take(database, "ben@lab pid 2", NOW + TERM / 2)

    assert "03:06:05" in caught.value.hint
    assert caught.value.exit_code == 75
    assert holder_of(database) == "ada@desk pid 1"


def test_a_lease_that_expired_can_be_taken(database: Engine):
    take(database, "ada@desk pid 1")

    take(database, "ben@lab pid 2", NOW + TERM)

    assert holder_of(database) == "ben@lab pid 2"


def test_a_lease_that_is_renewed_does_not_expire(database: Engine):
    take(database, "ada@desk pid 1")
    take(database, "ada@desk pid 1", NOW + TERM)

    with pytest.raises(LeaseHeld):
        take(database, "ben@lab pid 2", NOW + TERM * 1.5)


def test_only_its_holder_drops_a_lease(database: Engine):
    take(database, "ada@desk pid 1")

    with transaction(database) as session:
        drop_lease(session, "ben@lab pid 2")
    assert holder_of(database) == "ada@desk pid 1"
    with transaction(database) as session:
        drop_lease(session, "ada@desk pid 1")
    assert holder_of(database) is None


def test_a_writer_holds_the_lease_for_the_block_and_also_drops_it_after_an_error(database: Engine):
    with writer(database, actor()):
        assert (holder_of(database) or "").startswith(actor())
        with pytest.raises(LeaseHeld, match=str(os.getpid())), writer(database, actor()):
            pass
    assert holder_of(database) is None

    with pytest.raises(ZeroDivisionError), writer(database, actor()):
        raise ZeroDivisionError
    assert holder_of(database) is None


KILLED = """
import os, signal, sys
from alloop.loop.writer import actor, writer
from alloop.store.session import connect
with writer(connect(sys.argv[1]), actor()):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_of_this_machine_that_was_killed_is_replaced_at_once(database: Engine):
    url = database.url.render_as_string(hide_password=False)
    killed = subprocess.run([sys.executable, "-c", KILLED, url], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert holder_of(database) is not None

    with writer(database, actor()):
        assert (holder_of(database) or "").startswith(actor())


def test_a_process_that_got_the_number_of_one_that_died_is_not_taken_for_it(database: Engine):
    with writer(database, actor()):
        mine = holder_of(database) or ""
    before, _, token = mine.rpartition(".")
    machine, _, _started = before.rpartition(".")
    take(database, f"{machine}.1.{token}", dt.datetime.now(dt.UTC))  # began in the first moment after the boot

    with writer(database, actor()):
        assert holder_of(database) != mine


@pytest.mark.parametrize(
    "holder", ["ada@elsewhere.example pid 999999 #abcd", f"ada@{socket.gethostname()} pid 1 #abcd", "nobody knows"]
)
def test_a_holder_that_may_be_alive_is_respected(database: Engine, holder: str):
    take(database, holder, dt.datetime.now(dt.UTC))

    with pytest.raises(LeaseHeld), writer(database, actor()):
        pass

    assert holder_of(database) == holder


def test_the_heartbeat_renews_the_lease(database: Engine, monkeypatch: pytest.MonkeyPatch):
    renewed = threading.Event()
    monkeypatch.setattr(writer_module, "BEAT_SECONDS", 0.01)

    def watched(*arguments: object) -> None:
        take_lease(*arguments)  # type: ignore[arg-type]
        if threading.current_thread().name == "alloop-lease":
            renewed.set()

    monkeypatch.setattr(writer_module, "take_lease", watched)
    with writer(database, actor()):
        with transaction(database) as session:
            session.execute(text("UPDATE lease SET expires_at = '2026-01-01 00:00:00'"))
        renewed.clear()
        assert renewed.wait(timeout=20)
        assert renewed.clear() is None
        assert renewed.wait(timeout=20)  # one that began before the update may have been the first

        with pytest.raises(LeaseHeld):
            take(database, "ben@lab pid 2", dt.datetime.now(dt.UTC))


def test_a_lease_taken_over_is_not_taken_back(
    database: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(writer_module, "BEAT_SECONDS", 0.01)
    with writer(database, actor()):
        heart = next(thread for thread in threading.enumerate() if thread.name == "alloop-lease")
        with transaction(database) as session:
            later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
            session.execute(
                text("UPDATE lease SET holder = 'ben@lab pid 2', expires_at = :later"), {"later": f"{later:%F %T}"}
            )
        heart.join(timeout=20)

    assert not heart.is_alive()
    assert holder_of(database) == "ben@lab pid 2"
