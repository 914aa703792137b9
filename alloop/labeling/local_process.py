"""Background process that keeps running after alloop ends, identified by its id and start time."""

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
    """Process, identified by id and start time, since systems reuse ids."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        """Return whether the process still runs."""
        _reap(self.pid)
        started = start_time(self.pid)
        return started != "" and started == self.started


def start(command: Sequence[str], env: Mapping[str, str], log: Path, record: Path) -> Process:
    """Start a process in a session of its own, and record its id and start time.

    Args:
        command: Program and arguments.
        env: All of its environment variables.
        log: File to which its output is appended. The process runs in the log's folder.
        record: File that identifies the process.
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
    # The child keeps running after alloop ends. Without this line Popen would warn when it is garbage-collected.
    child.returncode = 0
    write_json(record, {"pid": process.pid, "started": process.started})
    return process


def find(record: Path) -> Process | None:
    """Return the recorded process, running or not; None without a record."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return Process(int(found["pid"]), str(found["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stop(process: Process) -> bool:
    """End a process by SIGTERM, and by SIGKILL if it does not react.

    Returns:
        True if it was running.

    Raises:
        LabelingError: SIGKILL did not end it either.
    """
    if not process.is_alive():
        return False
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            # The process leads a session of its own, so the signal reaches only the process and its children.
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
    """Collect the exit status of our child; otherwise the child would stay in the process table."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
