"""Output of commands on narrow terminals and into files: numbers are complete everywhere."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from command_line import alloop
from factories import make_project

from alloop.cli._tables import print_table, print_text

INTERVAL = re.compile(r"\d+\.\d+ \(\d+\.\d+–\d+\.\d+\)")
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
    done = start_alloop(theirs, *arguments)
    shown = read_to_the_end(ours)
    assert done.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


def read_to_the_end(terminal: int) -> str:
    """Return what is written to a terminal until its other end is closed, and close it."""
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux says so where the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    return shown.decode()


def start_alloop(stdout: int, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start a command whose output goes to a terminal, and close our copy of the terminal's end."""
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    started = subprocess.Popen(
        [sys.executable, "-m", "alloop", *arguments],
        stdout=stdout,
        stderr=stdout,
        env={**environ, "TERM": "xterm", "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(stdout)
    threading.Thread(target=end_at_last, args=(started,), daemon=True).start()
    return started


def end_at_last(started: "subprocess.Popen[bytes]") -> None:
    """Kill a command that does not end, because what reads from its terminal would wait forever."""
    try:
        started.wait(120)
    except subprocess.TimeoutExpired:
        started.kill()


def test_watching_shows_the_news_in_place_until_ctrl_c(tmp_path: Path):
    project = make_project(tmp_path, n=12)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    watching = start_alloop(theirs, "status", "--watch", "0.5", "-C", str(project.folder))
    seen = read_until(ours, "no round yet")
    assert alloop("run", "-C", project.folder).code == 0
    seen += read_until(ours, "round 0 is closed")
    watching.send_signal(signal.SIGINT)
    seen += read_to_the_end(ours)

    assert watching.wait() == 0
    assert "Traceback" not in seen
    assert "\x1b[2K" in seen  # the lines were written again in their place
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor is back


def test_watching_without_a_terminal_shows_the_status_once(tmp_path: Path):
    project = make_project(tmp_path, n=4)

    shown = alloop("status", "--watch", "-C", project.folder)

    assert shown.code == 0
    assert shown.out == alloop("status", "-C", project.folder).out
    assert shown.err == "This is not a terminal, so --watch shows the status once.\n"


def read_until(terminal: int, words: str) -> str:
    """Return what was written to a terminal until these words come."""
    seen = b""
    while words.encode() not in seen:
        seen += os.read(terminal, 65536)
    return seen.decode("utf-8", "replace")


def test_status_shows_every_figure_whole_on_narrow_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = at_round_one(tmp_path)
    figures = INTERVAL.findall(the_row(alloop("status", "-C", folder).out))
    assert len(figures) == 3  # accuracy, NLL, ECE: in one line, where nothing sets a width
    for columns in (80, 60, 40):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = alloop("status", "-C", folder).out
        table = table_of(shown)
        assert "…" not in shown
        assert set(figures) <= set(INTERVAL.findall(table))
        assert max(map(len, table.splitlines())) <= columns
        whole = alloop("status", "-v", "-C", folder).out
        assert set(figures) <= set(INTERVAL.findall(table_of(whole[: whole.index("Accuracy, NLL")])))
        if columns == 80:
            assert INTERVAL.findall(the_row(shown)) == figures
            assert max(map(len, shown.splitlines())) <= columns
    monkeypatch.delenv("COLUMNS")

    seen = on_terminal(80, "status", "-C", str(folder))

    assert set(figures) <= set(INTERVAL.findall(seen))
    assert "…" not in seen


def the_row(shown: str) -> str:
    """The first line of round 1 in the table."""
    return next(line for line in table_of(shown).splitlines() if re.match(r" *1 ", line))


def table_of(shown: str) -> str:
    """All that follows the five lines."""
    return shown[re.search(r"^ *round", shown, re.MULTILINE).start() :]  # type: ignore[union-attr]


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
