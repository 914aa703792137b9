"""The port to the machines that compute: a job goes in, its result comes out. Knows neither jobs nor machines."""

from typing import Protocol, TypeVar

from alloop.progress import Progress, silent

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Job(Protocol[Result_co]):
    """Work that another process or machine can do. Jobs and results are picklable and hold nothing open."""

    def run(self, progress: Progress = silent) -> Result_co:
        """Do the work here and now. Only executors call this."""
        ...


class Executor(Protocol):
    """A place where jobs run.

    Every implementation passes `tests/contracts/test_executor.py`. Commands and simulations choose one; everything
    below them is handed the executor and does not know which one it is.
    """

    def submit(self, job: Job[Result], progress: Progress = silent) -> Result:
        """Run one job and return its result. An error of the job is raised here as it was raised there."""
        ...
