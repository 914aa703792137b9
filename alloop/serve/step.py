"""The step that the pages run: one child process at a time. A crash of it does not end the server."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from alloop.errors import KEPT, DeviceError

PATIENCE = 5.0  # seconds between the request to stop and the kill


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """State of the newest step.

    Attributes:
        number: Number of steps that were started so far; 0 before the first.
        label, done, total: Present work, and how much of it is done; `total` is 0 if that is not known.
        says: Result in a sentence; empty while the step runs.
        hint: What to do about a failure.
        is_failed: True if the step ended without its result.
        version: Version of the workspace when the step ended (`Desk.version`); "" while it runs, or if nobody knows.
    """

    number: int = 0
    is_running: bool = False
    label: str = ""
    done: int = 0
    total: int = 0
    says: str = ""
    hint: str = ""
    is_failed: bool = False
    version: str = ""

    def is_true_of(self, version: str) -> bool:
        """Return False for a result that may no longer be true, because the workspace has changed since."""
        return self.is_running or not (self.version and version) or self.version == version

    @property
    def words(self) -> str:
        """Present work, or the result."""
        if not self.is_running:
            return f"{self.says} {self.hint}".strip()
        counts = f": {self.done:,} of {self.total:,}" if self.total else ""
        return f"The step is running. {self.label[:1].upper()}{self.label[1:]}{counts}".strip()


class Step:
    """Runs one step at a time for the workspace in `folder`; `version` returns the version of the workspace."""

    def __init__(self, folder: Path, version: Callable[[], str] = str) -> None:
        self._folder = folder
        self._version = version
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._state = State()
        self._is_over = False

    def state(self) -> State:
        """Return the state of the newest step."""
        return self._state

    def start(self, *job: str) -> bool:
        """Start a step, such as `start("run")`. Return False if one is running already, or the server is ending.

        Raises:
            DeviceError: The machine cannot start another process.
        """
        with self._lock:
            if self._state.is_running or self._is_over:
                return False
            try:
                self._child = self._spawn(job)
            except OSError as error:
                raise DeviceError(f"The step could not start: {error}.", "Try again.") from error
            self._state = State(self._state.number + 1, is_running=True, label="starting")
            threading.Thread(target=self._follow, args=(self._child,), name="alloop-step", daemon=True).start()
        return True

    def stop(self) -> None:
        """Stop the running step, and start no other. What it recorded stays; the next run continues from there."""
        with self._lock:
            self._is_over, child = True, self._child
        if child is None or child.poll() is not None:
            return
        for kind in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, kind)  # its workers, too
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(PATIENCE)
                return

    def _spawn(self, job: Sequence[str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "alloop.serve.step_process", str(self._folder), *job],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C reaches the server, which then stops the step
        )

    def _follow(self, child: "subprocess.Popen[str]") -> None:
        assert child.stdout is not None
        last: dict[str, str] = {}
        with child.stdout as lines:
            for line in lines:
                try:
                    said = json.loads(line)
                except json.JSONDecodeError:  # half a line: the process was killed while it wrote
                    continue
                if "label" in said:
                    self._state = dataclasses.replace(self._state, **said)
                else:
                    last = said
        code = child.wait()
        if not last:
            last = {
                "failed": f"The step ended without a result (exit code {code}). {KEPT}",
                "hint": "Run the next step again; it continues from there. The terminal of the server may say more.",
            }
        says, hint = last.get("says") or last.get("failed", ""), last.get("hint", "")
        number = self._state.number
        self._state = State(number, says=says, hint=hint, is_failed="failed" in last, version=self._version())
