"""alloop in processes that are forked from one with all imports, and that can kill themselves at a named point.

Importing torch takes seconds, and the first run in a process compiles its queries. Both are done once here, so a test
can kill a run at every one of its commits. Run as a program, this file is the process that forks: it reads requests
(JSON, one per line) from stdin and answers on stdout.
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from quick import share_compiled_sql

import alloop

_LONG = 300  # seconds after which a command that does not end is killed


@dataclasses.dataclass(frozen=True)
class Kill:
    """Point at which a process ends itself with SIGKILL.

    kind: `commit`: a database transaction; `request`: a request to the server that matches `part` (as in `POST
        …/import`); `file`: a written file is flushed (half of it is cut off first) or gets its name.
    at: Number of the point, from 1; with 0 all points are counted and nothing is killed.
    when: `before` or `after` the point.
    """

    kind: str
    at: int
    when: str = "before"
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Ended:
    """End of a process.

    trace: One sign for each point that the process passed: `.` for the kind that the test asked for, `+` for another
        one that changes something outside of the database.
    """

    rc: int
    out: str
    err: str
    trace: str

    @property
    def points(self) -> int:
        """Number of passed points of the kind that the test asked for."""
        return self.trace.count(".")

    @property
    def was_killed(self) -> bool:
        return self.rc == -signal.SIGKILL

    def json(self) -> Any:
        return json.loads(self.out)


class Forks:
    """The process that has imported everything, and forks an alloop for each request."""

    def __init__(self) -> None:
        source = Path(alloop.__file__).parents[1]  # the alloop under test, whatever the current folder is
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )

    def alloop(self, *argv: str, env: Mapping[str, str] | None = None, kill: Kill | None = None) -> Ended:
        """Run a command to its end, or to the point where it kills itself."""
        return self.end(self.start(*argv, env=env, kill=kill))

    def start(
        self, *argv: str, env: Mapping[str, str] | None = None, kill: Kill | None = None, program: str = "alloop"
    ) -> int:
        """Start a command and return its process id. A test that starts several must call `end` for each of them.

        Args:
            argv: Words of the command.
            env: Variables added to the environment.
            kill: Point at which the command ends itself.
            program: `alloop`, or a module beside the tests whose `main` is called with the words in its place.
        """
        killed = kill and dataclasses.asdict(kill)
        return int(self._ask({"argv": argv, "env": dict(env or {}), "kill": killed, "program": program}))

    def end(self, pid: int) -> Ended:
        """Wait for the end of a started command. Before this call, a killed command stays a zombie."""
        return Ended(**self._ask({"end": pid}))

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process, and commands that a failing test left running."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    process = Forks()
    yield process
    process.close()


# --- The process itself -----------------------------------------------------------------------------------------------


def serve() -> None:
    """Fork one alloop for each request."""
    share_compiled_sql()
    # Import everything, so that edited files are not mixed with files of an earlier state.
    for module in pkgutil.walk_packages(alloop.__path__, "alloop."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # needs an extra that is not installed
                importlib.import_module(module.name)
    people: Any = importlib.import_module("alloop.labeling.label_studio")
    # Small pages, so that a dozen answers need several. Pulls do not overlap: an overlap would hide lost answers.
    people._PULL_PAGE, people._OVERLAP = 4, dt.timedelta(0)
    connection: Any = importlib.import_module("alloop.labeling.connection").ServerConnection
    connection.__init__ = functools.partialmethod(connection.__init__, patience=0.05)  # seconds before reading again
    _warm_up()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    running: dict[int, Path] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "end" in request:
            answer: Any = _end(request["end"], running.pop(request["end"]))
        else:
            folder = Path(tempfile.mkdtemp())
            answer = _fork(request, folder)
            running[answer] = folder
        print(json.dumps(answer), file=replies, flush=True)
    for pid, folder in running.items():
        os.kill(pid, signal.SIGKILL)
        _end(pid, folder)


def _warm_up() -> None:
    """Run a small project, so that forks need not compile its queries, and let forks share all memory.

    Only the second run trains. What training loads takes a second, which each fork would need otherwise.
    """
    import factories

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        factories.make_project(Path(folder), loop={"max_rounds": 2})
        for command in ("run", "run", "status"):
            sys.argv = ["alloop", command, "--json", "-q", "-C", f"{folder}/pets"]
            assert _main() == 0
        for project in factories.OPENED:
            project.close()
    gc.collect()
    gc.freeze()


def _fork(request: dict[str, Any], folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        _become_alloop(request, *(folder / what for what in ("out", "err", "points")))
    return pid


def _end(pid: int, folder: Path) -> dict[str, Any]:
    _, status = os.waitpid(pid, 0)
    out, err, trace = (
        path.read_text() if path.exists() else "" for path in (folder / what for what in ("out", "err", "points"))
    )
    shutil.rmtree(folder)
    return {"rc": os.waitstatus_to_exitcode(status), "out": out, "err": err, "trace": trace}


def _become_alloop(request: dict[str, Any], out: Path, err: Path, points: Path) -> None:
    code = 70
    signal.alarm(_LONG)
    try:
        for path, descriptor in ((Path(os.devnull), 0), (out, 1), (err, 2)):
            opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.dup2(opened, descriptor)
        os.environ.update(request["env"])
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        sys.argv = ["alloop", *request["argv"]]
        if request["kill"]:
            _arm(Kill(**request["kill"]), points)
        own = request["program"]
        code = _main() if own == "alloop" else importlib.import_module(own).main(*request["argv"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main() -> int:
    from alloop.cli.main import main

    try:
        main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def _arm(kill: Kill, points: Path) -> None:
    passed = 0

    def note(sign: str) -> None:
        with points.open("a") as file:
            file.write(sign)

    def around(act: Callable[[], Any], spoil: Callable[[], None] = lambda: None) -> Any:
        nonlocal passed
        passed += 1
        note(".")
        due = passed == kill.at
        if due and kill.when == "before":
            spoil()
            os.kill(os.getpid(), signal.SIGKILL)
        result = act()
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def beside(act: Callable[[], Any], spoil: Callable[[], None] = lambda: None) -> Any:
        note("+")
        return act()

    _arm_commits(around if kill.kind == "commit" else lambda act: act())
    _arm_requests(kill.part, around if kill.kind == "request" else beside)
    _arm_files(around if kill.kind == "file" else beside)


def _arm_commits(around: Callable[..., Any]) -> None:
    from sqlalchemy.engine.default import DefaultDialect

    commit = DefaultDialect.do_commit
    DefaultDialect.do_commit = lambda self, connection: around(lambda: commit(self, connection))


def _arm_requests(part: str, around: Callable[..., Any]) -> None:
    """Arm the requests that match `part`; without it, all requests that change something on the server."""
    from alloop.labeling.connection import ServerConnection

    send = ServerConnection.send

    def matches(method: str, path: str) -> bool:
        if not part:
            return method != "GET"
        return f"{method} {path}".startswith(part) or (part.startswith("…") and path.endswith(part[1:]))

    def sent(self: ServerConnection, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        if matches(method, path):
            return around(lambda: send(self, method, path, *args, **kwargs))
        return send(self, method, path, *args, **kwargs)

    ServerConnection.send = sent


def _arm_files(around: Callable[..., Any]) -> None:
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def halve(descriptor: int) -> None:
        with contextlib.suppress(OSError):  # descriptor of a folder
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)

    os.fsync = lambda descriptor: around(lambda: fsync(descriptor), lambda: halve(descriptor))
    os.replace = lambda *args, **kwargs: around(lambda: replace(*args, **kwargs))
    os.rename = lambda *args, **kwargs: around(lambda: rename(*args, **kwargs))


if __name__ == "__main__":
    serve()
