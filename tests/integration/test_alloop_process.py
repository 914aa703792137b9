"""Forked commands, which other tests use in place of fresh ones, do what fresh ones do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from alloop_process import Forks
from factories import make_project
from label_studio_server import wait_until

WORDS = [["status"], ["status", "--json"], ["pool", "list", "--unlabeled"], ["strategies"], ["--version"], ["stat"]]


def fresh(folder: Path, words: list[str], **env: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "alloop", *at(folder, words)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def forked(forks: Forks, folder: Path, words: list[str], **env: str) -> tuple[int, str, str]:
    ended = forks.alloop(*at(folder, words), env=env)
    return ended.rc, ended.out, ended.err


def at(folder: Path, words: list[str]) -> list[str]:
    return words if words[0].startswith("--") else [*words, "-C", str(folder)]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_forked_command_prints_and_ends_as_a_fresh_one(forks: Forks, tmp_path: Path, words: list[str]):
    folder = make_project(tmp_path, n=6).folder

    assert forked(forks, folder, words, COLUMNS="200") == fresh(folder, words, COLUMNS="200")


def test_it_fails_as_a_fresh_one_where_there_is_no_workspace(forks: Forks, tmp_path: Path):
    code, out, err = forked(forks, tmp_path, ["status"])

    assert (code, out) == (2, "")
    assert (code, out, err) == fresh(tmp_path, ["status"])


def test_every_forked_command_has_its_own_environment(forks: Forks, tmp_path: Path):
    narrow, wide = (forked(forks, tmp_path, ["--help"], COLUMNS=width) for width in ("50", "80"))

    assert narrow == fresh(tmp_path, ["--help"], COLUMNS="50")
    assert wide == fresh(tmp_path, ["--help"], COLUMNS="80")
    assert narrow != wide


def test_a_forked_command_is_a_process_of_its_own(forks: Forks, tmp_path: Path):
    folder = make_project(tmp_path, n=6, labeling={"backend": "csv"}).folder
    pid = forks.start("run", "--wait", "-C", str(folder))
    wait_until(lambda: any((folder / "sheets").glob("*.csv")), seconds=120)

    os.kill(pid, 9)

    assert forks.end(pid).was_killed
    assert forks.alloop("status", "-C", str(folder)).rc == 0
