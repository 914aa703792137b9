"""Options of every command (-C, --json, -v, -q), and output of results, progress and warnings."""

import dataclasses
import datetime as dt
import functools
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alloop.files import STDOUT, is_stdout
from alloop.progress import Progress

if TYPE_CHECKING:
    from alloop.executor import Executor
    from alloop.loop.workbench import Tools
    from alloop.project import Project

PLAIN_EVERY = 5.0  # seconds between progress lines where there is no terminal


class OutFile(click.Path):
    """Path of a file to write; `-` means standard output."""

    def __init__(self, *, dir_okay: bool = False) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; `STDOUT` for `-`."""
        path = Path(str(super().convert(value, param, ctx)))
        return STDOUT if str(path) == "-" else path


@dataclasses.dataclass(frozen=True)
class Session:
    """A running command: its workspace and its output. Results go to stdout, everything else to stderr."""

    workspace: Path
    as_json: bool
    verbosity: int

    def project(self, *, check_schema: bool = True) -> "Project":
        """Open the workspace until the command ends."""
        from alloop.project import open_project

        return click.get_current_context().with_resource(open_project(self.workspace, check_schema=check_schema))

    def executor(self) -> "Executor":
        """Make the executor of this command's jobs: the one that ALLOOP_EXECUTOR names, or the local one."""
        from alloop.executor import chosen_executor

        return chosen_executor()

    def tools(self) -> "Tools":
        """Open the workspace until the command ends, and return it with all that work on it needs."""
        from alloop.loop.workbench import make_tools

        return make_tools(self.project(), self.executor(), self.progress())

    def show(self, data: object, text: str = "", *, written: Path | None = None) -> None:
        """Print a result: as JSON, or in words.

        Args:
            data: The result.
            text: The same result in words.
            written: File that the command wrote. If it was standard output, the result goes to stderr instead.
        """
        err = written is not None and is_stdout(written)
        if self.as_json:
            click.echo(json.dumps(_plain(data), indent=2, ensure_ascii=False, default=str, allow_nan=False), err=err)
        elif text and self.verbosity >= 0:
            click.echo(text, err=err)

    def progress(self) -> Progress:
        """Return a progress bar on a terminal, occasional lines elsewhere, nothing with -q."""
        if self.verbosity < 0:
            from alloop.progress import silent

            return silent
        return _Bar() if sys.stderr.isatty() else _Lines()


def _plain(value: Any) -> Any:
    """Replace nan and infinity by None, since JSON cannot hold them."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def common_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the shared options; the command gets a `Session` as its first argument."""

    @click.option(
        "-C",
        "--workspace",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(),
        envvar="ALLOOP_WORKSPACE",
        help="Workspace folder.  [default: current folder]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("-v", "--verbose", count=True, help="Print more; -vv also prints tracebacks.")
    @click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
    @functools.wraps(function)
    def command(workspace: Path, as_json: bool, verbose: int, quiet: bool, **options: Any) -> None:
        level = logging.ERROR if quiet else (logging.DEBUG if verbose > 1 else logging.INFO)
        _set_up_logging(level)
        function(Session(workspace, as_json, -1 if quiet else verbose), **options)

    return command


def _set_up_logging(level: int) -> None:
    """Print alloop's own log messages on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("alloop")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


class Pace:
    """Speed of a phase of work since its first report.

    Args:
        done: Number of things that were done at the first report.
    """

    def __init__(self, done: int) -> None:
        self._began, self._first = time.monotonic(), done

    def say(self, done: int, total: int) -> str:
        """Return how many are done in a second, and the time left.

        Empty in the first second, and without a total: such work counts the seconds that it waits.
        """
        seconds = time.monotonic() - self._began
        if not total or done <= self._first or seconds < 1:
            return ""
        pace = (done - self._first) / seconds
        rate = f"{pace:.0f} a second" if pace >= 10 else f"{pace:.2g} a second"
        return rate + (f", {dt.timedelta(seconds=round((total - done) / pace))} left" if total > done else "")


class _Lines:
    """Progress as lines: the first, one every few seconds, and the last."""

    def __init__(self) -> None:
        self._label = ""
        self._said = 0.0
        self._pace = Pace(0)

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        is_end = total > 0 and done >= total
        if label != self._label:
            self._pace = Pace(done)
        elif now - self._said < PLAIN_EVERY and not is_end:
            return
        self._label, self._said = ("" if is_end else label), now
        counts = f"{label}: {done}/{total}" if total else f"{label}: {done}"
        click.echo(", ".join(filter(None, [counts, self._pace.say(done, total)])), err=True)


class _Bar:
    """A rich progress bar per label; it disappears when its phase ends."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._label = ""
        self._pace = Pace(0)

    def __call__(self, label: str, done: int, total: int) -> None:
        if label != self._label:
            self._stop()
            self._start(label)
            self._pace = Pace(done)
        self._bar.update(0, completed=done, total=total or None, pace=self._pace.say(done, total))
        if total and done >= total:
            self._stop()

    def _start(self, label: str) -> None:
        import atexit

        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        pace = TextColumn("{task.fields[pace]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), pace)
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.add_task(label, total=None, pace="")
        self._bar.start()
        self._label = label
        atexit.register(self._stop)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._label = None, ""
