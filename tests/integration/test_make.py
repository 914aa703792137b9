"""The README's two commands, as far as they go without an environment: the Python and the installer that make takes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def planned(bin_folder: Path, *arguments: str, target: str = "setup") -> str:
    """The commands that `make setup` (or another target) would run."""
    of_make = {"PYTHON", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL"}  # these tests may run under make
    environ = {name: value for name, value in os.environ.items() if name not in of_make}
    environ["PATH"] = f"{bin_folder}{os.pathsep}{environ['PATH']}"
    command = ["make", "--dry-run", "--always-make", target, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout


def write_uv(folder: Path, exit_code: int) -> Path:
    uv = folder / "uv"
    uv.write_text(f"#!/bin/sh\necho uv 1.0\nexit {exit_code}\n")
    uv.chmod(0o755)
    return folder


def test_uv_is_used_where_it_runs(tmp_path: Path):
    commands = planned(write_uv(tmp_path, exit_code=0))

    assert "uv pip install" in commands
    assert "-m pip install" not in commands


def test_a_uv_that_does_not_run_is_left_alone(tmp_path: Path):
    """Pyenv finds the uv of every Python it has, and runs that of the active one only."""
    commands = planned(write_uv(tmp_path, exit_code=127))

    assert ".venv/bin/python -m pip install" in commands
    assert "uv pip install" not in commands


def test_a_python_that_is_named_gets_an_environment_of_its_own(tmp_path: Path):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"

    commands = planned(write_uv(tmp_path, exit_code=1), f"PYTHON={sys.executable}")

    assert f"{sys.executable} -m venv .venv-{version}" in commands
    assert f".venv-{version}/bin/python -m pip install" in commands


def test_the_plain_command_keeps_its_environment(tmp_path: Path):
    commands = planned(write_uv(tmp_path, exit_code=1))

    assert "python3 -m venv .venv\n" in commands


def test_the_fast_tests_are_those_without_a_server_and_nothing_else_is_checked(tmp_path: Path):
    fast, every = (planned(write_uv(tmp_path, exit_code=1), target=target) for target in ("test-fast", "test"))

    assert "-n 2 --dist worksteal tests/unit tests/contracts -m 'not slow and not label_studio and not post" in fast
    assert "ruff" not in fast
    assert "-m pytest -n 2 --dist worksteal\n" in every
    assert "ruff check" in every
