"""Telling a writer that died from one that is at work, and stopping one that slept."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from factories import NOW, make_project

from alloop.errors import LeaseHeld
from alloop.loop import writer as room
from alloop.loop.writer import actor, check_writer, writer
from alloop.processes import start_time
from alloop.project import Project
from alloop.store.session import reading, transaction
from alloop.store.workspace import drop_lease, find_lease_holder, take_lease

LONG_AFTER = NOW.replace(year=2100)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, 0, add=False)


def holder(pid: int, *, host: str | None = None, machine: str | None = None, started: str | None = None) -> str:
    """As `writer` writes it, about any process."""
    began = start_time(pid) if started is None else started
    return f"ann@{host or socket.gethostname()} pid {pid} #{machine or room._machine()}.{began}.0a0b0c0d"


def leave_lease(project: Project, name: str) -> None:
    with transaction(project.database) as session:
        take_lease(session, name, NOW, LONG_AFTER)


def can_write(project: Project) -> bool:
    try:
        with writer(project.database, actor()):
            return True
    except LeaseHeld:
        return False


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_writer_that_lives_keeps_its_lease(project: Project):
    leave_lease(project, holder(os.getppid()))

    assert not can_write(project)


@pytest.mark.parametrize("person", ["Ada", "Ada pid 1 #", "pid 1", "a pid pid b", " ", "a@b pid"])
def test_a_writer_for_a_person_is_recognized_whatever_the_name(project: Project, person: str):
    mine = actor(person)

    alive = f"{mine} #{room._machine()}.{start_time(os.getpid())}.0a0b0c0d"
    leave_lease(project, alive)
    assert not can_write(project)
    with transaction(project.database) as session:
        drop_lease(session, alive)
    leave_lease(project, f"{mine.rpartition(' ')[0]} {dead_pid()} #{room._machine()}.12345.0a0b0c0d")
    assert can_write(project)


def test_a_writer_that_died_here_is_replaced_at_once(project: Project):
    leave_lease(project, holder(dead_pid(), started="12345"))

    assert can_write(project)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="zombies are told by /proc")
def test_a_killed_writer_that_nobody_has_buried_yet_is_replaced_at_once(project: Project):
    """A scheduler that does not wait for its children leaves zombies, which keep their number."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave_lease(project, holder(child.pid))
    assert not can_write(project)

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # wait for its end, and leave it in the process table

    assert can_write(project)
    child.communicate()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times are read from /proc")
def test_another_process_under_the_number_of_a_dead_one_is_not_taken_for_it(project: Project):
    leave_lease(project, holder(os.getppid(), started="1"))

    assert can_write(project)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times are read from /proc")
def test_our_own_number_from_before_a_restart_is_not_us(project: Project):
    """In a container alloop is process 1 each time."""
    leave_lease(project, holder(os.getpid(), started="1"))

    assert can_write(project)


@pytest.mark.parametrize("where", [{"host": "elsewhere"}, {"machine": "0badcafe"}])
def test_what_died_elsewhere_cannot_be_known(project: Project, where: dict):
    """Also where a container of another machine has the name of ours."""
    leave_lease(project, holder(dead_pid(), started="12345", **where))

    assert not can_write(project)


def test_a_holder_in_words_of_another_alloop_is_left_alone(project: Project):
    leave_lease(project, "somebody")

    assert not can_write(project)


def test_the_message_names_the_holder_without_its_mark(project: Project):
    leave_lease(project, holder(os.getppid()))

    with pytest.raises(LeaseHeld) as caught, writer(project.database, actor()):
        pass

    assert f"ann@{socket.gethostname()} pid {os.getppid()}, since 03:04:05 UTC" in caught.value.message
    assert "#" not in caught.value.message


def test_renewing_a_lease_does_not_change_since_when_it_is_held(project: Project):
    leave_lease(project, "somebody")
    with transaction(project.database) as session:
        take_lease(session, "somebody", NOW.replace(hour=9), LONG_AFTER)

    with pytest.raises(LeaseHeld, match="since 03:04:05"), writer(project.database, actor()):
        pass


def test_a_writer_that_was_overtaken_learns_of_it_and_does_not_end_the_other_lease(project: Project):
    with writer(project.database, actor()) as lease:
        with transaction(project.database) as session:
            check_writer(session, lease)
            drop_lease(session, str(find_lease_holder(session)))
            take_lease(session, "ann@elsewhere pid 1", NOW, LONG_AFTER)

        with pytest.raises(LeaseHeld, match="taken over"), reading(project.database) as session:
            check_writer(session, lease)

    with reading(project.database) as session:
        assert find_lease_holder(session) == "ann@elsewhere pid 1"
        with pytest.raises(LeaseHeld, match="taken over"):
            check_writer(session, lease)  # the lease ended with the block
