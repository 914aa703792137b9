"""Call the program in this process, as the console script does."""

import contextlib
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from alloop.cli.main import main


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a command."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Return the data that --json printed."""
        return json.loads(self.out)


def alloop(*arguments: str | Path) -> Outcome:
    """Run a command. Exceptions that are bugs are not caught."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["alloop", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code: Any = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
    return Outcome(code, out.getvalue(), err.getvalue())
