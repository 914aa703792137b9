"""Output of commands on narrow terminals and into files: numbers are complete everywhere."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from command_line import alloop
from factories import make_project

from alloop.cli._tables import print_table, print_text

INTERVAL = re.compile(r"\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]")
TITLE = "Accuracy, %, at each number of labels (5 seeds, 200 images each)"
COLUMNS = ["strategy", "area %", "final gain over random, pp", "labels to match random", "rest %", "s / round"]
CELLS = ["margin:perturb=power:beta=2", "91.2 ± 0.4", "+1.3 [+0.4, +2.1]", "240 [180, not reached]", "90.1", "0.52"]


def at_round_one(tmp_path: Path) -> Path:
    project = make_project(tmp_path, n=30)
    for _ in range(2):
        assert alloop("run", "-C", project.folder).code == 0
    project.close()
    return project.folder


def on_terminal(width: int, *arguments: str) -> str:
    """Output of a command on a terminal so wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    done = subprocess.Popen(
        [sys.executable, "-m", "alloop", *arguments],
        stdout=theirs,
        env={**environ, "TERM": "xterm", "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so where the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert done.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def test_status_shows_every_figure_whole_on_narrow_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = at_round_one(tmp_path)
    wide = alloop("status", "-C", folder).out
    (row,) = [line for line in wide.splitlines() if re.match(r" *1 +\w+ ", line)]
    figures = INTERVAL.findall(row)
    assert len(figures) == 3  # accuracy, NLL, ECE: in one line, where nothing sets a width
    for columns in (80, 60, 40):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = alloop("status", "-C", folder).out
        table = shown[shown.index("round") : shown.index("Accuracy, NLL")]
        assert "…" not in table
        assert set(figures) <= set(INTERVAL.findall(table))
        assert max(map(len, table.splitlines())) <= columns

    seen = on_terminal(80, "status", "-C", str(folder))

    assert set(figures) <= set(INTERVAL.findall(seen))
    assert "…" not in seen[seen.index("round") : seen.index("Accuracy, NLL")]


@pytest.mark.parametrize("columns", [None, 120, 80, 60, 30])
def test_a_table_keeps_every_cell_and_repeats_what_its_lines_are_about(
    columns: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))

    print_table((TITLE, COLUMNS, [[(cell, 0) for cell in CELLS]]), left=frozenset({"strategy"}))

    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert all(any(cell in line for line in lines) for cell in [*CELLS, *COLUMNS])
    assert " ".join(shown.split()).startswith(TITLE) or columns is not None
    parts = [line for line in lines if CELLS[0] in line]
    assert len(parts) == {None: 1, 120: 1, 80: 2, 60: 4, 30: 5}[columns]
    if columns is not None and columns >= 60:
        assert max(map(len, lines)) <= columns


def test_a_path_that_is_longer_than_a_line_stays_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "60")
    path = "/pictures/" + "of/the/team/" * 8 + "index.html"

    print_text(f"Tables and pictures of everything that was measured here: {path} [acquisition]")

    assert path in capsys.readouterr().out.splitlines()
