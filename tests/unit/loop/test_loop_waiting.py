"""A run that waits for people leaves the workspace to others meanwhile."""

from pathlib import Path

import pytest
from command_line import alloop
from factories import at_bench, make_project, tools_of

from alloop.loop.rounds import steps
from alloop.loop.rounds.runner import RunOptions, run
from alloop.loop.writer import actor, writer
from alloop.records import Ending, QueryStatus
from alloop.store.queries import list_queries
from alloop.store.rounds import list_rounds
from alloop.store.session import reading


class EnoughError(Exception):
    """Ends a run that would wait on."""


def test_a_round_can_be_closed_by_hand_while_a_run_waits(tmp_path: Path) -> None:
    project = make_project(tmp_path, 30, labeling={"backend": "csv"}, loop={"batch_size": 5})
    waited = []

    def others_turn(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) > 1:
            raise EnoughError
        at_bench(project, steps.close, 0, Ending.BY_HAND, "closed by hand")

    with pytest.raises(EnoughError):
        run(tools_of(project), RunOptions(wait=True, rounds=None, sleep=others_turn))

    with reading(project.database) as session:
        rounds = list_rounds(session)
    assert [row.closed_because for row in rounds] == ["closed by hand", None]
    assert [row.ending for row in rounds] == [Ending.BY_HAND, None]
    assert waited == [project.config.labeling.poll_seconds] * 2


def test_a_run_that_waits_goes_on_waiting_while_another_one_works(tmp_path: Path) -> None:
    project = make_project(tmp_path, 30, labeling={"backend": "csv"}, loop={"batch_size": 5})
    waited = []
    other = writer(project.database, actor())

    def others_turn(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 1:
            other.__enter__()
        else:
            other.__exit__(None, None, None)
            raise EnoughError

    with pytest.raises(EnoughError):
        run(tools_of(project), RunOptions(wait=True, rounds=None, sleep=others_turn))

    assert len(waited) == 2


def test_tasks_that_a_closed_round_left_open_can_be_taken_back(tmp_path: Path) -> None:
    project = make_project(tmp_path, 30, labeling={"backend": "csv"}, loop={"batch_size": 5})
    alloop("run", "-C", project.folder)
    assert alloop("round", "close", "-C", project.folder).code == 0

    outcome = alloop("round", "close", "0", "--withdraw", "-C", project.folder)

    assert outcome.code == 0, outcome.err
    with reading(project.database) as session:
        assert {query.status for query in list_queries(session)} == {QueryStatus.WITHDRAWN}
    assert alloop("round", "close", "0", "-C", project.folder).code == 1
