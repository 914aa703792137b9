"""Several alloops at once: on one workspace, and on one server."""

import contextlib
import os
import signal
import sqlite3
import threading
from collections import Counter
from pathlib import Path

import pytest
from alloop_process import Forks
from factories import CLASSES
from faulty_proxy import faulty_proxy
from label_studio_server import LabelStudioServer, wait_until
from looked_at import Workspace, copied, make_pool, make_workspace

from alloop.labeling.single_choice import SingleChoice

pytestmark = [pytest.mark.label_studio, pytest.mark.slow]

LONG = 300.0  # seconds until a test gives up


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, label_studio: LabelStudioServer, forks: Forks) -> Workspace:
    """A workspace before its first run."""
    pool = make_pool(label_studio, "concurrent", 40)
    return make_workspace(tmp_path_factory.mktemp("concurrent") / "pets", label_studio, forks, pool, known=12)


@pytest.fixture
def workspace(start: Workspace, tmp_path: Path) -> Workspace:
    return copied(start, tmp_path / "pets", new_identity=True)


def test_of_two_runs_at_once_one_works_and_the_other_names_it(workspace: Workspace):
    with faulty_proxy(workspace.server.url) as proxy:
        # The first is held up in the middle of its push until the second has had its turn.
        proxy.fail("held", "POST", "/import")
        first = workspace.start("run", "--json", "-q", LABEL_STUDIO_URL=proxy.url)
        wait_until(lambda: proxy.count("POST", "/import") == 1, seconds=LONG)
        second = workspace.alloop("run")
        seen = workspace.status()  # looking needs no lease
        proxy.release.set()
        ended = workspace.forks.end(first)

    assert second.rc == 75
    assert seen["rounds"][0]["state"] == "selected"
    assert f"pid {first}" in second.err
    assert "#" not in second.err
    assert ended.rc == 0, ended.err
    assert '"stage": "waiting"' in ended.out
    workspace.check()


def test_many_runs_started_in_the_same_moment_ask_once(workspace: Workspace):
    started = [workspace.start("run", "-q") for _ in range(3)]
    ended = [workspace.forks.end(pid).rc for pid in started]

    assert set(ended) <= {0, 75}
    assert 0 in ended
    workspace.run()
    workspace.check()


def test_a_run_that_waits_takes_answers_as_they_come_until_it_is_done(workspace: Workspace):
    with faulty_proxy(workspace.server.url) as proxy:
        waiting = workspace.start("run", "--wait", "--json", LABEL_STUDIO_URL=proxy.url)
        wait_until(lambda: workspace.sql("SELECT 1 FROM round WHERE state = 'pushed'") != [], seconds=LONG)
        # The server is restarted meanwhile: more failures than one poll tries again by itself.
        proxy.fail("500", "GET", "/api/", times=5)
        while workspace.answer(most=3):
            pass
        ended = workspace.forks.end(waiting)

    assert ended.rc == 0, ended.err
    assert '"stage": "done"' in ended.out
    assert "Trying again in 0.2 s" in ended.err
    workspace.check()


def test_a_killed_run_that_nobody_has_buried_yet_is_replaced_at_once(workspace: Workspace):
    """A zombie keeps its process id."""
    waiting = workspace.start("run", "--wait", "-q")
    wait_until(lambda: workspace.sql("SELECT 1 FROM round WHERE state = 'pushed'") != [], seconds=LONG)

    os.kill(waiting, signal.SIGKILL)
    wait_until(lambda: Path(f"/proc/{waiting}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    os.kill(waiting, 0)  # it is still in the process table
    ended = workspace.alloop("run")

    workspace.forks.end(waiting)
    assert ended.rc == 0, ended.err
    workspace.check()


def test_a_run_that_slept_through_its_lease_sends_nothing_more(workspace: Workspace):
    """Its machine was asleep in the middle of a push; another machine took over meanwhile."""
    with faulty_proxy(workspace.server.url) as proxy:
        proxy.fail("held", "POST", "/import")
        held: list = []
        sleeper = threading.Thread(
            target=lambda: held.append(workspace.alloop("run", LABEL_STUDIO_URL=proxy.url)), name="sleeper"
        )
        sleeper.start()
        wait_until(lambda: proxy.count("POST", "/import") == 1, seconds=LONG)
        overtake(workspace)
        proxy.release.set()
        sleeper.join()
        sent = proxy.count("POST", "/import")

    assert held[0].rc == 75
    assert "has taken over" in held[0].err
    assert sent == 1
    overtake(workspace, None)
    workspace.finish()
    workspace.check()


def overtake(workspace: Workspace, holder: str | None = "ann@elsewhere pid 1 #x.1.y") -> None:
    with contextlib.closing(sqlite3.connect(workspace.folder / "alloop.db")) as connection, connection:
        if holder is None:
            connection.execute("DELETE FROM lease")
        else:
            connection.execute("UPDATE lease SET holder = ?", (holder,))


def test_two_workspaces_of_one_name_on_one_server_do_not_mix(start: Workspace, tmp_path: Path):
    one, two = (copied(start, tmp_path / name / "pets", new_identity=True) for name in ("a", "b"))

    for workspace in (one, two):
        assert workspace.run()["stage"] == "waiting"
    one.finish()
    two.run()

    assert one.project != two.project
    for workspace in (one, two):
        workspace.check()
    assert one.status()["pool"]["open"] == 0
    assert two.status()["pool"]["open"] == 8
    assert two.sql("SELECT count(*) FROM annotation WHERE source = 'label-studio'") == [(0,)]


def test_two_workspaces_in_one_project_leave_each_others_tasks_alone(
    tmp_path: Path, label_studio: LabelStudioServer, forks: Forks
):
    pool = make_pool(label_studio, "concurrent", 40)
    body = {"title": "shared", "label_config": SingleChoice().build(CLASSES)}
    shared = label_studio.api("POST", "/api/projects/", json=body).json()["id"]
    named = {"labeling__label_studio": {"project_id": shared}}
    one, two = (make_workspace(tmp_path / n / "pets", label_studio, forks, pool, known=12, **named) for n in "ab")

    for workspace in (one, two):
        workspace.run()
    one.answer()  # everything that is in the project
    for workspace in (one, two):
        assert workspace.run()["stage"] == "advanced"

    keys = [key for workspace in (one, two) for (key,) in workspace.sql("SELECT key FROM query")]
    assert Counter(task["data"]["alloop_key"] for task in one.tasks()) == Counter(keys)
    for workspace in (one, two):
        assert workspace.sql("SELECT count(*) FROM annotation WHERE source = 'label-studio'") == [(8,)]
