"""Runs jobs on this machine. Imports no torch: a job loads what it needs."""

import contextlib
import itertools
import multiprocessing
import signal
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from alloop.errors import WorkerKilled
from alloop.executor import Job, Result
from alloop.processes import begin_worker
from alloop.progress import Progress, silent


class LocalExecutor:
    """Executor for which submitting is calling; several jobs at once run in processes of this machine."""

    def submit(self, job: Job[Result], progress: Progress = silent) -> Result:
        return job.run(progress)

    def run_all(
        self, jobs: Iterable[Job[Result]], at_once: int, *, ahead: int = 1, in_order: bool = False
    ) -> Generator[Result, None, None]:
        if at_once > 1:
            yield from _run_in_processes(iter(jobs), at_once, at_once * ahead, in_order)
            return
        for job in jobs:
            yield job.run()


def _run_in_processes(jobs: Iterator[Job[Result]], at_once: int, most: int, in_order: bool) -> Iterator[Result]:
    # Processes rather than threads: hashing, decoding and Python code hold the interpreter's lock, and Pillow's limits
    # are global. Spawned, because forking a process that has threads (a progress bar's, torch's) can deadlock.
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn"), begin_worker)
    under_way: list[Future[Result]] = []
    try:
        while True:
            for job in itertools.islice(jobs, most - len(under_way)):
                with _interrupts_held():  # the first jobs start the processes
                    under_way.append(pool.submit(job.run))
            if not under_way:
                return
            done = under_way[:1] if in_order else wait(under_way, return_when=FIRST_COMPLETED).done
            for future in done:
                under_way.remove(future)
                yield future.result()
    except BrokenProcessPool as error:
        raise WorkerKilled(
            "A worker process was killed, most likely because memory ran out.", "Run the command again."
        ) from error
    finally:
        # A user who interrupts wants to stop now, not after the jobs that have begun.
        for process in set(multiprocessing.active_children()) - others if under_way else ():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C: processes started in the block do not get it before they ignore it; this process gets it after."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
