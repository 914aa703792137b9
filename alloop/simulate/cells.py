"""Cells of an experiment: each is computed once, in one of several processes, and stored as a JSON file."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from alloop.errors import AlloopError, WorkerKilled, WorkspaceError
from alloop.executor import Executor
from alloop.files import explain_os_error, make_output_folder
from alloop.processes import start_time
from alloop.progress import Progress, silent

Plan = TypeVar("Plan")
Value = TypeVar("Value")
_SCRATCH = ".scratch-"


class Deadline:
    """Deadline after which no cell is started; None: no limit."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def is_over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end


def digest_of(content: object) -> str:
    """Return the SHA-256 of everything a cell depends on, as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_cell_file(path: Path, build: Callable[[Any], Value]) -> Value | None:
    """Read a finished cell; None if the file does not exist.

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
    """Make a temporary folder next to the results. Folders of killed runs are removed."""
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
    plans: Sequence[Plan], work: Callable[[Plan], None], executor: Executor, at_once: int, deadline: Deadline
) -> Iterator[tuple[Plan, str | None]]:
    """Compute cells, and yield them when they are done.

    Args:
        plans: Plans of the cells, in the order of starting. With several at once, they go to other processes.
        work: Function that computes and stores one cell. If it raises an error, the cell has failed; others continue.
        executor: Executor of the cells.
        at_once: Number of cells computed at the same time; 1: in this process.
        deadline: Time after which no cell is started. Cells that were not started are not yielded.

    Yields:
        (plan, reason of its failure or None).
    """
    in_time = itertools.takewhile(lambda _: not deadline.is_over(), plans)
    jobs = (_CellJob(plan, work, is_alone=at_once == 1) for plan in in_time)
    try:
        with contextlib.closing(executor.run_all(jobs, at_once)) as done:
            yield from done
    except WorkerKilled as error:
        raise AlloopError(
            "A process that computed a result was killed, perhaps because memory ran out.",
            "Run the same command again to continue. Fewer --jobs need less memory.",
        ) from error


@dataclasses.dataclass(frozen=True)
class _CellJob(Generic[Plan]):
    """Job that computes one cell.

    Attributes:
        is_alone: False if other cells are computed at the same time, so that each gets one thread.
    """

    plan: Plan
    work: Callable[[Plan], None]
    is_alone: bool

    def run(self, progress: Progress = silent) -> tuple[Plan, str | None]:
        if not self.is_alone:
            torch.set_num_threads(1)
        try:
            self.work(self.plan)
        except AlloopError as error:
            return self.plan, error.message
        except Exception as error:  # a strategy of another package may raise anything
            return self.plan, f"{type(error).__name__}: {error}"
        return self.plan, None
