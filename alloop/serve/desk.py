"""Content of the pages, read anew whenever the workspace changes and kept until then."""

import functools
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import text

from alloop.engine.pool_map import FOLDER as MAPS
from alloop.errors import AlloopError, ModelError
from alloop.loop.measuring.findings import learning_curve, read_last_holdout
from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.project import Project, open_project
from alloop.records import CurvePoint
from alloop.report.gather import StatusReport, gather_status
from alloop.report.made import Made, gather_made
from alloop.report.second_looks import SecondLooks, gather_second_looks
from alloop.serve.map_maker import Making, MapMaker, plan_map
from alloop.serve.snapshot import Snapshot, take_snapshot
from alloop.store.migrate import require_current
from alloop.store.session import reading
from alloop.store.workspace import find_newest

Value = TypeVar("Value")


class Desk:
    """The workspace as the pages see it. Its parts are computed once for each state of the database.

    No database session lives on between two requests, so looking never holds back a writer. A change by a command in
    another terminal is seen at the next request.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._project: Project | None = None
        self._settings: object = None
        self._file: object = None
        self._state: object = None
        self._version_state: object = None
        self._version = ""
        self._parts: dict[str, Any] = {}
        self._part_locks: dict[str, threading.Lock] = {}
        self.maps = MapMaker()

    def project(self) -> Project:
        """Return the open workspace; it is opened again after a change of its settings, or of its database's file.

        SQLite would go on reading a file that was moved away, for example when a backup was put in its place.

        Raises:
            AlloopError: The workspace cannot be opened.
        """
        with self._lock:
            settings = _stamp(self.folder / "alloop.toml")
            if self._project is None or settings != self._settings or _file_of(self._project) != self._file:
                self._close()
                self._project, self._settings, self._parts = open_project(self.folder), settings, {}
                self._file, self._version_state = _file_of(self._project), None
            return self._project

    def close(self) -> None:
        """Close the database, and stop what is being made."""
        self.maps.close()
        with self._lock:
            self._close()

    def status(self) -> StatusReport:
        """Return the numbers of `alloop status`."""
        return self.part("status", gather_status)

    def curve(self) -> list[CurvePoint]:
        """Return accuracy by labels."""
        return self.part("curve", _curve)

    def holdout(self) -> HoldoutPredictions | None:
        """Return the newest model's predictions for the holdout; None before a measurement."""
        return self.part("holdout", _holdout)

    def looks(self) -> SecondLooks:
        """Return the labels worth a second look."""
        return self.part("looks", _looks)

    def made(self) -> Made | None:
        """Return how the newest measured model was made; None before a measurement."""
        return self.part("made", _made)

    def pool(self) -> Snapshot:
        """Return all images with what is known of them."""
        return self.part("pool", _pool)

    def making(self) -> Making:
        """Return how far the map is, and begin to make it if there is none."""
        making = self.maps.state()
        if making.is_under_way or self.pool().spots is not None:
            return making
        try:
            self.make_map(is_asked_for=False)
        except ModelError as error:
            return Making(f"{error.message} {error.hint}".strip())
        return self.maps.state()

    def make_map(self, *, is_asked_for: bool) -> None:
        """Begin to make the map of the present pool. It replaces the present map when it is ready.

        Raises:
            ModelError: There are no features that it could be made from.
        """
        project = self.project()
        with reading(project.database) as session:
            self.maps.begin(plan_map(session, project), is_asked_for=is_asked_for)

    def version(self) -> str:
        """Return a text that differs after every change that people should see; "" if the workspace cannot be read.

        Unlike the state of the files, it stays the same while a command at work renews its lease.
        """
        try:
            project = self.project()
            state = _state_of(project)
            if state != self._version_state:
                with reading(project.database) as session:
                    newest = find_newest(session)
                self._version_state, self._version = state, f"{self._settings} {newest}"
        except AlloopError:
            return ""
        return hashlib.sha256(self._version.encode()).hexdigest()[:16]

    def part(self, name: str, compute: Callable[[Project], Value]) -> Value:
        """Return a part of what the pages show, computed once for each state of the database."""
        project = self.project()
        state = _state_of(project)
        with self._lock:
            if state != self._state:
                require_current(project.database)  # a newer alloop may have upgraded it
                self._state, self._parts = state, {}
            parts, own_lock = self._parts, self._part_locks.setdefault(name, threading.Lock())
        with own_lock:  # ten readers wait for one computation
            if name not in parts:
                parts[name] = compute(project)
            value: Value = parts[name]
        return value

    def _close(self) -> None:
        if self._project is not None:
            self._project.close()
        self._project = None


def _state_of(project: Project) -> object:
    """Return a value that differs after every change of the database, and when a map was made."""
    return _database_state(project), _stamp(project.paths.cache / MAPS)


def _database_state(project: Project) -> object:
    url = project.database.url
    if url.get_backend_name() == "sqlite":
        return tuple(_stamp(Path(f"{url.database}{end}")) for end in ("", "-wal"))
    with reading(project.database) as session:
        return session.execute(text("SELECT pg_current_snapshot()::text")).scalar()


def _file_of(project: Project) -> tuple[int, int] | None:
    """Return the identity of the database's file; None without a file."""
    url = project.database.url
    try:
        stat = Path(url.database or "").stat() if url.get_backend_name() == "sqlite" else None
    except OSError:
        return None
    return None if stat is None else (stat.st_dev, stat.st_ino)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _with_session(read: Callable[..., Value], project: Project) -> Value:
    with reading(project.database) as session:
        return read(session, project)


_curve = functools.partial(_with_session, learning_curve)
_looks = functools.partial(_with_session, gather_second_looks)
_made = functools.partial(_with_session, gather_made)
_holdout = functools.partial(_with_session, read_last_holdout)
_pool = functools.partial(_with_session, take_snapshot)
