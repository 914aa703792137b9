"""The port to the machines that compute: a job goes in, its result comes out. Knows neither jobs nor machines."""

import os
from collections.abc import Generator, Iterable
from typing import Protocol, TypeVar, runtime_checkable

from alloop.composition import DEFAULT_EXECUTOR, EXECUTOR_GROUP, EXECUTORS
from alloop.errors import ConfigError, did_you_mean
from alloop.plugins import list_installed, load_named
from alloop.progress import Progress, silent

VARIABLE = "ALLOOP_EXECUTOR"
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Job(Protocol[Result_co]):
    """Work that another process or machine can do. Jobs and results are picklable and hold nothing open."""

    def run(self, progress: Progress = silent) -> Result_co:
        """Do the work here and now. Only executors call this."""
        ...


@runtime_checkable
class Executor(Protocol):
    """A place where jobs run. An executor is picklable, because a job may hold one for jobs of its own.

    Every implementation passes `tests/contracts/test_executor.py`. Commands choose one; everything below them is handed
    the executor and does not know which one it is.
    """

    def submit(self, job: Job[Result], progress: Progress = silent) -> Result:
        """Run one job and return its result. An error of the job is raised here as it was raised there."""
        ...

    def run_all(
        self, jobs: Iterable[Job[Result]], at_once: int, *, ahead: int = 1, in_order: bool = False
    ) -> Generator[Result, None, None]:
        """Run independent jobs, several at once, and yield their results as they are done.

        Jobs are taken one by one when there is room for them, so an endless iterable is possible. To cancel, close the
        iterator: no further job begins, and jobs that are under way are stopped. Ctrl-C does the same.

        Args:
            jobs: The jobs. With `at_once` above 1, each runs in a process without a terminal.
            at_once: Number of jobs that run at the same time; 1 or less: one after the other, in this process.
            ahead: Jobs per process that may be under way or done before their results are asked for.
            in_order: Yield results in the order of the jobs.

        Raises:
            WorkerKilled: A process was killed from outside.
        """
        ...


def find_executor(name: str = DEFAULT_EXECUTOR) -> Executor:
    """Make the executor of this name. Its class takes no arguments.

    Raises:
        ConfigError: No executor has this name, or it cannot be imported, or it is not an `Executor`.
    """
    hint = f"unset {VARIABLE}"
    try:
        found = load_named("executor", name, EXECUTOR_GROUP, EXECUTORS, hint)
    except KeyError:
        known = (*EXECUTORS, *list_installed(EXECUTOR_GROUP))
        raise ConfigError(f"There is no executor '{name}'{did_you_mean(name, known)}") from None
    if not (isinstance(found, type) and issubclass(found, Executor)):
        raise ConfigError(f"The executor {name} is not an Executor (alloop.executor).", f"Ask its authors, or {hint}.")
    return found()


def chosen_executor() -> Executor:
    """Make the executor that ALLOOP_EXECUTOR names, or the local one.

    Raises:
        ConfigError: As in `find_executor`.
    """
    return find_executor(os.environ.get(VARIABLE) or DEFAULT_EXECUTOR)
