"""Making of the map in a process of its own: no page waits for it, and the server loads none of its libraries."""

import dataclasses
import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from sqlalchemy.orm import Session

from alloop.engine.pool_map import PROBLEM, MapJob, make_aside, map_path
from alloop.project import Project
from alloop.records import Split
from alloop.serve.features import find_source
from alloop.store.images import list_refs, list_split

AGAIN_AFTER = 60.0  # seconds after a failure in which it is not tried again
WORDS = {"features": "Reading the features of the pool", "layout": "Arranging the images"}


@dataclasses.dataclass(frozen=True, slots=True)
class Making:
    """State of the work in words. `share` is the part that is done; None if that is not known."""

    says: str
    share: float | None = None
    is_under_way: bool = False


def plan_map(session: Session, project: Project) -> MapJob:
    """Return the job that makes the map of the newest model's features.

    Raises:
        ModelError: There are no such features.
    """
    source, seed = find_source(session, project), project.config.project.seed
    labeled = frozenset(ref.image_id for ref in list_refs(session, labeled=True))
    junk = set(list_split(session, Split.JUNK))
    images = tuple(ref for ref in list_refs(session) if ref.image_id not in junk)
    return MapJob(source, images, labeled, seed, map_path(source, seed))


class MapMaker:
    """Makes maps, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._reports: Connection | None = None
        self._state = Making("")
        self._ended_at = -AGAIN_AFTER

    def state(self) -> Making:
        """Return how far the map is, or why the last one was not made."""
        with self._lock:
            self._listen()
            return self._state

    def begin(self, job: MapJob, *, is_asked_for: bool = False) -> None:
        """Begin to make a map, unless one is being made, or the last one just failed and nobody asks for another."""
        with self._lock:
            self._listen()
            just_failed = bool(self._state.says) and time.monotonic() - self._ended_at < AGAIN_AFTER
            if self._process is not None or (just_failed and not is_asked_for):
                return
            context = multiprocessing.get_context("spawn")  # the server has threads, which a fork would lose
            reports, sender = context.Pipe(duplex=False)
            process = context.Process(target=make_aside, args=(job, sender), daemon=True)
            process.start()
            sender.close()
            self._process, self._reports = process, reports  # not before the start: it fails where memory is short
            self._state = Making("Reading the features of the pool", None, is_under_way=True)

    def close(self) -> None:
        """Stop the work."""
        with self._lock:
            if self._process is not None:
                self._process.terminate()
                self._process.join()
            self._forget()

    def _listen(self) -> None:
        """Take in what the process has reported, and its end."""
        if self._process is None or self._reports is None:
            return
        has_ended = not self._process.is_alive()
        problem = ""
        try:
            while self._reports.poll():
                label, done, total = self._reports.recv()
                if label == PROBLEM:
                    problem = done
                else:
                    self._state = Making(WORDS[label], done / total if total else None, is_under_way=True)
        except EOFError:
            self._process.join()
            has_ended = True
        if has_ended:
            self._state = Making(problem or _end_words(self._process.exitcode or 0))
            self._ended_at = time.monotonic()
            self._forget()

    def _forget(self) -> None:
        if self._reports is not None:
            self._reports.close()
        self._process, self._reports = None, None


def _end_words(exit_code: int) -> str:
    if exit_code < 0:
        return "The process that makes the map was killed, most likely because memory ran out."
    return "The map could not be made. The terminal of `alloop serve` shows why." if exit_code else ""
