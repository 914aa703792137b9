"""Process of a step that the pages start: `python -m alloop.serve.step_process FOLDER run`.

It writes a line of JSON for its progress, and a last one for its result. If nobody reads them any more, it ends.
"""

import json
import os
import sys
import time
from pathlib import Path

from alloop.errors import KEPT, AlloopError
from alloop.executor import chosen_executor
from alloop.loop.workbench import Tools, make_tools, open_workbench
from alloop.names import count
from alloop.project import open_project
from alloop.store.queries import list_unsent
from alloop.store.session import reading

EVERY = 0.25  # seconds between two lines about the same work


class _Reports:
    """Progress as lines, as often as a person can read them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._label, self._said = "", 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if label != self._label or done >= total or now - self._said >= EVERY:
            self._label, self._said = label, now
            self.write(label=label, done=done, total=total)

    def write(self, **said: object) -> None:
        os.write(self._descriptor, f"{json.dumps(said)}\n".encode())


def main(folder: str, job: str, person: str = "") -> None:
    """Take the step for a person, and report how it went."""
    reports = _Reports(os.dup(1))
    os.dup2(2, 1)  # what libraries print is no report
    try:
        with open_project(Path(folder)) as project:
            tools = make_tools(project, chosen_executor(), reports, person)
            reports.write(says={"run": _run, "send": _send}[job](tools))
    except AlloopError as error:
        reports.write(failed=error.message, hint=error.hint)
    except KeyboardInterrupt:
        reports.write(failed=f"The step was stopped. {KEPT}", hint="The next step continues from what is recorded.")


def _run(tools: Tools) -> str:
    from alloop.loop.rounds.runner import RunOptions, run
    from alloop.report.gather import find_label_place
    from alloop.report.headlines import where_to_label

    result = run(tools, RunOptions(rounds=1))
    said = result.describe(where_to_label(find_label_place(tools.project)), "The next step begins the next round.")
    return " ".join((said, *result.attention))


def _send(tools: Tools) -> str:
    """Send the questions that wait."""
    from alloop.loop.asking import people

    with open_workbench(tools) as bench:
        with reading(tools.project.database) as session:
            unsent = list_unsent(session)
        if not unsent:
            return "No question waits to be sent."
        n = people.push(bench, max(query.round_number for query in unsent))
    return f"{count(n, 'question')} sent."


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BrokenPipeError:  # the server was killed
        sys.exit(1)
