"""Jobs of a map that do not end well. A process of their own loads this file."""

import dataclasses
import time

from alloop.engine.pool_map import MapJob
from alloop.errors import WorkspaceError
from alloop.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class Refused(MapJob):
    def run(self, progress: Progress = silent) -> None:
        progress("layout", 1, 4)
        raise WorkspaceError("The disk is full.")


@dataclasses.dataclass(frozen=True)
class Endless(MapJob):
    def run(self, progress: Progress = silent) -> None:
        progress("layout", 1, 4)
        time.sleep(600)
