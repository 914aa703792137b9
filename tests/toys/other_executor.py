"""An executor of another package: it records the kinds of jobs, and the local executor runs them."""

import os
from collections.abc import Generator, Iterable
from pathlib import Path

from alloop.engine.executor_local import LocalExecutor
from alloop.executor import Job, Result
from alloop.progress import Progress, silent

LOG = "TOY_EXECUTOR_LOG"  # variable that names the file to which the kinds of jobs are appended


class Remembering:
    def submit(self, job: Job[Result], progress: Progress = silent) -> Result:
        if LOG in os.environ:
            with Path(os.environ[LOG]).open("a") as file:
                file.write(f"{type(job).__name__}\n")
        return LocalExecutor().submit(job, progress)

    def run_all(
        self, jobs: Iterable[Job[Result]], at_once: int, *, ahead: int = 1, in_order: bool = False
    ) -> Generator[Result, None, None]:
        yield from LocalExecutor().run_all(jobs, at_once, ahead=ahead, in_order=in_order)
