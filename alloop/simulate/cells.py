"""The cells of an experiment: each is computed once and kept as a JSON file, here or in several processes."""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch

from alloop.errors import AlloopError, WorkspaceError
from alloop.files import explain_os_error, make_output_folder
from alloop.processes import start_time

Plan = TypeVar("Plan")
Value = TypeVar("Value")
_SCRATCH = ".scratch-"


class Deadline:
    """After so many minutes nothing new is begun; None: no limit."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def is_over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end


def digest_of(content: object) -> str:
    """SHA-256 of what a cell depends on, as JSON; a file with another digest is another cell."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_cell_file(path: Path, build: Callable[[Any], Value]) -> Value | None:
    """A finished cell; None where there is none.

    Raises:
        WorkspaceError: The file is damaged.
    """
    try:
        return build(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkspaceError(
            f"{path} is damaged: {error}.", "Remove the file. Its result is then computed again."
        ) from error


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A folder for what is not kept, beside the results. What a killed run left of its own is removed."""
    with contextlib.suppress(OSError):
        for left in out.glob(f"{_SCRATCH}*"):
            ours = re.fullmatch(re.escape(_SCRATCH) + "([0-9]+)-.*", left.name)
            if ours and not start_time(int(ours[1])):
                shutil.rmtree(left, ignore_errors=True)
    try:
        make_output_folder(out)
        folder = tempfile.TemporaryDirectory(dir=out, prefix=f"{_SCRATCH}{multiprocessing.current_process().pid}-")
    except OSError as error:
        raise explain_os_error(error, out) from error
    with folder as name:
        yield Path(name)


def run_cells(
    plans: Sequence[Plan], work: Callable[[Plan], None], jobs: int, deadline: Deadline
) -> Iterator[tuple[Plan, str | None]]:
    """Compute cells, in order of beginning; as many at once as there are jobs.

    Args:
        plans: Each is handed to `work`; with several jobs both go to other processes.
        work: Computes and keeps one cell. A cell in which it raises is failed; the others go on.
        jobs: 1: here.
        deadline: What is not begun by then is not yielded.

    Yields:
        A plan that is done, and why it failed, or None.
    """
    if jobs == 1:
        for plan in plans:
            if deadline.is_over():
                return
            yield plan, _attempt(work, plan)
        return
    context = multiprocessing.get_context("spawn")
    workers = concurrent.futures.ProcessPoolExecutor(jobs, context, _prepare_worker)
    waiting = iter(plans)
    running: dict[concurrent.futures.Future[str | None], Plan] = {}
    try:
        while True:
            room = 0 if deadline.is_over() else jobs - len(running)
            for plan in itertools.islice(waiting, room):
                running[workers.submit(_attempt, work, plan)] = plan
            if not running:
                return
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise AlloopError(
            "A process that computed a result was killed, perhaps because memory ran out.",
            "Run the same command again to continue. Fewer --jobs need less memory.",
        ) from error
    finally:
        workers.shutdown(wait=False, cancel_futures=True)
        # Whoever is interrupted wants to stop now, not after the cells that have begun.
        for process in multiprocessing.active_children() if running else ():
            process.terminate()


def _attempt(work: Callable[[Plan], None], plan: Plan) -> str | None:
    try:
        work(plan)
    except AlloopError as error:
        return error.message
    except Exception as error:  # a strategy of somebody else's may raise anything
        return f"{type(error).__name__}: {error}"
    return None


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what becomes of us
    torch.set_num_threads(1)
