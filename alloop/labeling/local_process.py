"""A background process that outlives its starter, told apart from strangers by when it began."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from alloop.errors import LabelingError
from alloop.files import write_json
from alloop.processes import start_time

_STOP_SECONDS = 15.0


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """A process by number and start time: numbers are used again, with another start time."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        """Whether it still runs."""
        _reap(self.pid)
        started = start_time(self.pid)
        return started != "" and started == self.started


def start(command: Sequence[str], env: Mapping[str, str], log: Path, record: Path) -> Process:
    """Start a process in a session of its own and write down which it is.

    Args:
        command: Program and arguments.
        env: All of its environment.
        log: What it says is added here; it runs in the log's folder.
        record: Where to remember it.
    """
    with log.open("ab") as file:
        child = subprocess.Popen(
            command,
            env=dict(env),
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    process = Process(child.pid, start_time(child.pid))
    # It is meant to outlive us; without this Popen would complain when it is collected while the child runs.
    child.returncode = 0
    write_json(record, {"pid": process.pid, "started": process.started})
    return process


def find(record: Path) -> Process | None:
    """The process that was written down, running or not."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return Process(int(found["pid"]), str(found["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stop(process: Process) -> bool:
    """End it: SIGTERM, and SIGKILL should it not listen.

    Returns:
        Whether it was running.

    Raises:
        LabelingError: Not even SIGKILL ended it.
    """
    if not process.is_alive():
        return False
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            # It leads a session of its own, so this reaches what it started and nobody else.
            os.killpg(process.pid, sign)
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            if not process.is_alive():
                return True
            time.sleep(0.05)
    raise LabelingError(
        f"Process {process.pid} (Label Studio) does not end.", "Find out what keeps it running, or end it by hand."
    )


def _reap(pid: int) -> None:
    """Take note of the end of a child of ours; it would stay in the process table otherwise."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
