"""Help: at once, complete, and the same everywhere."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from command_line import alloop
from factories import make_project, write_settings

from alloop import __version__
from alloop.cli.main import ENTRIES, cli

HEAVY = (
    "torch",
    "sqlalchemy",
    "alembic",
    "label_studio_sdk",
    "numpy",
    "matplotlib",
    "pydantic",
    "PIL",
    "rich",
    "starlette",
)
PROBE = """
import json, sys
sys.argv = ["alloop", *sys.argv[1:]]
from alloop.cli.main import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


ALL = list(commands(cli))
LEAVES = [(path, command) for path, command in ALL if not isinstance(command, click.Group)]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["db", "upgrade", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]):
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)

    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert "click" in loaded
    assert sorted(loaded & set(HEAVY)) == []


def modules_of(folder: Path, *arguments: str) -> set[str]:
    """Return the modules that a command has imported by its end, in a fresh process."""
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], cwd=folder, capture_output=True, text=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


COMPUTES = {"torch", "torchvision", "sklearn", "scipy", "pandas", "matplotlib", "alembic", "label_studio_sdk"}
SERVES = {"starlette", "uvicorn", "alloop.serve", "alloop.serve.app"}


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with measured models, whose last questions wait for people."""
    project = make_project(tmp_path_factory.mktemp("waiting"))
    assert alloop("run", "--rounds", "3", "-C", project.folder).code == 0
    write_settings(project, labeling={"backend": "csv"})
    assert "wait for annotators" in alloop("run", "-C", project.folder).out
    return project.folder


@pytest.mark.parametrize("arguments", [["status"], ["run"], ["pool", "add", "photos"], ["round", "list"]], ids=" ".join)
def test_a_command_with_nothing_to_compute_imports_nothing_that_computes(waiting: Path, arguments: list[str]):
    loaded = modules_of(waiting, *arguments)

    assert "sqlalchemy" in loaded
    assert sorted(loaded & (COMPUTES | SERVES | {"sqlalchemy.dialects.postgresql"})) == []


def test_a_choice_is_made_again_without_pandas(waiting: Path):
    loaded = modules_of(waiting, "replay", "1")

    assert {"torch", "pyarrow"} <= loaded
    assert "pandas" not in loaded


@pytest.mark.parametrize("arguments", [["run"], ["status"], ["train"]], ids=" ".join)
def test_a_command_outside_of_a_workspace_is_refused_before_it_imports_what_computes(
    tmp_path: Path, arguments: list[str]
):
    assert sorted(modules_of(tmp_path, *arguments) & COMPUTES) == []


@pytest.mark.parametrize("name", ENTRIES)
def test_a_summary_is_the_first_line_of_its_command(name: str):
    module, _, function = ENTRIES[name].target.partition(":")
    command = getattr(importlib.import_module(module), function)

    assert ENTRIES[name].summary == (command.help or "").strip().splitlines()[0]
    assert ENTRIES[name].summary.endswith(".")


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_command_has_help_that_says_something_of_every_option(path: tuple[str, ...], command: click.Command):
    shown = alloop(*path, "--help")

    assert shown.code == 0
    assert shown.out.startswith("Usage: ")
    assert (command.help or "").strip().splitlines()[0] in " ".join(shown.out.split())
    for option in command.params:
        if isinstance(option, click.Option) and option.name != "help":
            assert option.help, f"--{option.name} says nothing"
    assert alloop(*path, "-h").out == shown.out


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_takes_the_common_options(path: tuple[str, ...], command: click.Command):
    names = {name for option in command.params for name in option.opts}

    assert {"-C", "--workspace", "--json", "-v", "--verbose", "-q", "--quiet"} <= names


@pytest.mark.parametrize("path", [path for path, command in ALL if isinstance(command, click.Group)], ids=" ".join)
def test_no_summary_is_cut_short(path: tuple[str, ...]):
    assert "..." not in alloop(*path, "--help").out.partition("Commands:")[2]


def test_the_version_is_told_by_the_script_and_by_the_module():
    done = subprocess.run([sys.executable, "-m", "alloop", "--version"], capture_output=True, text=True, check=True)

    assert done.stdout == alloop("--version").out == f"alloop, version {__version__}\n"


def test_alloop_alone_shows_its_commands():
    shown = alloop()

    assert shown.code == 2
    for name, entry in ENTRIES.items():
        assert name in shown.err
        assert entry.summary in " ".join(shown.err.split())


def test_a_command_that_is_not_one_is_named_with_the_nearest():
    wrong = alloop("statsu")

    assert wrong.code == 2
    assert "statsu" in wrong.err
    assert "status" in wrong.err


def test_a_wrong_option_is_a_matter_of_usage():
    wrong = alloop("run", "--rouns", "3")

    assert wrong.code == 2
    assert "--rounds" in wrong.err
