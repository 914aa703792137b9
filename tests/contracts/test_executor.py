"""The promises of every executor. A new one joins with one line in EXECUTORS."""

import dataclasses
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toys.other_executor import Remembering

from alloop.engine.executor_local import LocalExecutor
from alloop.errors import AlloopError, LabelError, WorkerKilled
from alloop.executor import Executor
from alloop.progress import Progress, silent

EXECUTORS: dict[str, Callable[[], Executor]] = {
    "local": LocalExecutor,
    "of another package": Remembering,
}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Executor:
    return EXECUTORS[request.param]()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


@dataclasses.dataclass(frozen=True)
class Doubling:
    """Job that doubles a number and says where. It begins when the file `after` is there, and then writes `leaves`."""

    number: int
    after: Path | None = None
    leaves: Path | None = None

    def run(self, progress: Progress = silent) -> tuple[int, int]:
        if self.after is not None:
            wait_for(self.after)
        if self.leaves is not None:
            self.leaves.touch()
        progress("doubling", 1, 1)
        return 2 * self.number, os.getpid()


@dataclasses.dataclass(frozen=True)
class Failing:
    message: str

    def run(self, progress: Progress = silent) -> None:
        raise LabelError(self.message, "Label more.")


@dataclasses.dataclass(frozen=True)
class Marking:
    """Job that says in a file that it began, and in another that it ended."""

    folder: Path
    seconds: float = 0.0

    def run(self, progress: Progress = silent) -> None:
        (self.folder / "begun").touch()
        time.sleep(self.seconds)
        (self.folder / "ended").touch()


@dataclasses.dataclass(frozen=True)
class Dying:
    def run(self, progress: Progress = silent) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class Passing:
    """Job that hands another one to its own executor."""

    executor: Executor

    def run(self, progress: Progress = silent) -> int:
        return self.executor.submit(Doubling(4))[0]


def test_the_result_of_a_job_comes_back_and_its_progress_is_heard(executor: Executor):
    heard: list[tuple[str, int, int]] = []

    result = executor.submit(Doubling(3), lambda *said: heard.append(said))

    assert result[0] == 6
    assert heard == [("doubling", 1, 1)]


def test_an_error_of_a_job_is_raised_as_it_was(executor: Executor):
    with pytest.raises(LabelError, match="Too few labels") as caught:
        executor.submit(Failing("Too few labels."))
    assert caught.value.hint == "Label more."

    with pytest.raises(LabelError, match="Too few labels") as caught:
        list(executor.run_all([Failing("Too few labels.")] * 2, at_once=2))
    assert caught.value.hint == "Label more."


@pytest.mark.parametrize("at_once", [0, 1, 2])
def test_every_job_of_a_batch_gives_its_result(executor: Executor, at_once: int):
    results = list(executor.run_all([Doubling(n) for n in range(5)], at_once))

    assert sorted(double for double, _ in results) == [0, 2, 4, 6, 8]
    # One at a time runs in this process; more at once run elsewhere.
    assert (os.getpid() in {process for _, process in results}) == (at_once < 2)


def test_results_come_as_they_are_done_or_in_the_order_of_the_jobs(executor: Executor, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    slow_first = [Doubling(0, after=first), Doubling(1), Doubling(2), Doubling(3, leaves=first)]
    slow_first_again = [Doubling(0, after=second), Doubling(1, leaves=second), Doubling(2), Doubling(3)]

    as_done = [double for double, _ in executor.run_all(slow_first, at_once=2)]
    in_order = [double for double, _ in executor.run_all(slow_first_again, at_once=2, in_order=True)]

    assert as_done[:2] == [2, 4]
    assert sorted(as_done) == in_order == [0, 2, 4, 6]


@pytest.mark.parametrize(("ahead", "taken_at_most"), [(1, 2), (3, 6)])
def test_jobs_are_taken_only_a_little_ahead(executor: Executor, ahead: int, taken_at_most: int):
    taken = 0

    def endless() -> Iterator[Doubling]:
        nonlocal taken
        for taken in itertools.count(1):
            yield Doubling(taken)

    results = executor.run_all(endless(), at_once=2, ahead=ahead)
    next(results)
    results.close()

    assert taken <= taken_at_most


def test_closing_stops_what_is_under_way_and_leaves_nothing_behind(executor: Executor, tmp_path: Path):
    results = executor.run_all(iter([Doubling(1), Marking(tmp_path, seconds=60.0)]), at_once=2)
    next(results)
    wait_for(tmp_path / "begun")

    began = time.monotonic()
    results.close()

    assert time.monotonic() - began < 30
    assert not (tmp_path / "ended").exists()
    assert multiprocessing.active_children() == []
    assert not [thread for thread in threading.enumerate() if "QueueManager" in thread.name]


def test_a_killed_process_is_an_error_that_a_user_can_read(executor: Executor):
    with pytest.raises(WorkerKilled, match="killed") as caught:
        list(executor.run_all([Dying(), Dying()], at_once=2))

    assert isinstance(caught.value, AlloopError)


def test_a_batch_without_jobs_is_empty(executor: Executor):
    assert list(executor.run_all([], at_once=2)) == []


def test_a_job_may_hold_its_executor(executor: Executor):
    pickle.loads(pickle.dumps(executor))

    assert list(executor.run_all([Passing(executor)] * 2, at_once=2)) == [8, 8]
