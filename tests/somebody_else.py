"""Run the program as a user who can read a workspace but not write to it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from command_line import Outcome

PROGRAM = """
import json, os, shutil, sys, tempfile
sys.path[:0] = json.loads(sys.argv[1])
import command_line
commands = json.loads(sys.argv[2])
# Once with a copy, so that all modules are loaded while they can be read.
there = os.getcwd()
with tempfile.TemporaryDirectory() as folder:
    os.chdir(shutil.copytree(there, os.path.join(folder, "in", os.path.basename(there))))
    for arguments in commands:
        command_line.alloop(*arguments)
    os.chdir(there)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.environ.update(HOME="/nonexistent", USER="somebody")
done = [command_line.alloop(*arguments) for arguments in commands]
print(json.dumps([[one.code, one.out, one.err] for one in done]))
"""


def as_somebody_else(folder: Path, *commands: list[str]) -> list[Outcome]:
    """Run commands in another user's process (root could write everything); their paths are relative to `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(sys.path), json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(*one) for one in json.loads(done.stdout.splitlines()[-1])]


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
