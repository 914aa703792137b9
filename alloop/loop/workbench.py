"""Tools of the loop, handed to it as one object: functions that read take `Tools`, steps take a `Workbench`."""

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator
from functools import partial
from typing import final

from alloop.executor import Executor
from alloop.labeling.annotator import Annotator
from alloop.labeling.build import build_annotator
from alloop.loop.writer import Clock, Lease, actor, utc_now, writer
from alloop.progress import Progress, silent
from alloop.project import Project


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tools:
    """Open workspace with everything that work on it needs. Functions get these parts and do not create them.

    Attributes:
        executor: Executor of training, scoring and feature jobs.
        annotator: Function that makes the labeling back end of `[labeling]` for the workspace's key.
        clock: Function that returns the time now, in UTC.
        user: Name for the event log and for messages to others who want to work on the workspace.
        progress: Function that receives the progress.
    """

    project: Project
    executor: Executor
    annotator: Callable[[str], Annotator]
    clock: Clock = utc_now
    user: str
    progress: Progress = silent


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Workbench(Tools):
    """Tools with the lease of the workspace; the first argument of steps that write.

    Attributes:
        lease: Proof that no other alloop writes to the workspace.
    """

    lease: Lease

    def now(self) -> dt.datetime:
        """Return the time now, in UTC."""
        return self.clock()


def make_tools(project: Project, executor: Executor, progress: Progress = silent, person: str = "") -> Tools:
    """Return the tools for an open workspace: its labeling back end, this machine's clock and user.

    Args:
        project: The workspace.
        executor: Executor of jobs.
        progress: Function that receives the progress.
        person: Name of the person for whom the process works, if it works for several.
    """
    annotator = partial(_build, project)
    return Tools(project=project, executor=executor, annotator=annotator, user=actor(person), progress=progress)


@contextlib.contextmanager
def open_workbench(tools: Tools) -> Iterator[Workbench]:
    """Take the lease of the workspace for the duration of the block.

    Raises:
        LeaseHeld: Another alloop is at work.
    """
    with writer(tools.project.database, tools.user, tools.clock) as lease:
        parts = {field.name: getattr(tools, field.name) for field in dataclasses.fields(Tools)}
        yield Workbench(**parts, lease=lease)


def _build(project: Project, workspace_key: str) -> Annotator:
    from alloop.pool.picture import PICTURES  # Pillow loads here, not for commands that ask nobody

    return build_annotator(project.config, project.folder, workspace_key, project.environ, PICTURES)
