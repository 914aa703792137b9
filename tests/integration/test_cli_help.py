"""Help: at once, complete, and the same everywhere."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from command_line import alloop

from alloop import __version__
from alloop.cli.main import ENTRIES, cli

HEAVY = ("torch", "sqlalchemy", "alembic", "label_studio_sdk", "numpy", "matplotlib", "pydantic", "PIL", "rich")
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
