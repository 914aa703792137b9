"""Run the program as a user who can read a workspace but not write to it."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alloop_process import Forks
from command_line import Outcome, alloop


def as_somebody_else(forks: Forks, folder: Path, *commands: list[str]) -> list[Outcome]:
    """Run commands in another user's process (root could write everything); their paths are relative to `folder`."""
    ended = forks.end(forks.start(str(folder), json.dumps(commands), env=os.environ, program="somebody_else"))
    assert ended.rc == 0, ended.err
    return [Outcome(*one) for one in json.loads(ended.out.splitlines()[-1])]


def main(folder: str, words: str) -> int:
    """Become another user in a forked process, run commands in a folder, and print their outcomes."""
    commands = json.loads(words)
    # Once with a copy, so that all modules are loaded while they can be read.
    with tempfile.TemporaryDirectory() as place:
        os.chdir(shutil.copytree(folder, Path(place) / "in" / Path(folder).name))
        for arguments in commands:
            alloop(*arguments)
        os.chdir(folder)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    os.environ.update(HOME="/nonexistent", USER="somebody")
    done = [alloop(*arguments) for arguments in commands]
    print(json.dumps([[one.code, one.out, one.err] for one in done]))
    return 0


@contextlib.contextmanager
def closed_to_others(folder: Path) -> Iterator[None]:
    """Make everything in a folder readable but not writable inside the block, and make the folder reachable."""
    # pytest's folders are closed to other users; this user must be able to pass through them.
    closed = {parent: parent.stat().st_mode for parent in folder.parents if not parent.stat().st_mode & 1}
    for parent, mode in closed.items():
        parent.chmod(mode | 0o055)
    inside = [folder, *folder.rglob("*")]
    for path in inside:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        for path in inside:
            if path.exists():
                path.chmod(0o755 if path.is_dir() else 0o644)
        for parent, mode in closed.items():
            parent.chmod(mode)
