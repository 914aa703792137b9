"""Command group that imports a command only to run it or to show its help."""

import importlib
from collections.abc import Mapping
from typing import NamedTuple

import click

from alloop.errors import did_you_mean


class Entry(NamedTuple):
    """Import path of a command (`package.module:name`) and its one-line summary."""

    target: str
    summary: str


class LazyGroup(click.Group):
    """Command group built from a table."""

    def __init__(self, *args: object, entries: Mapping[str, Entry], **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return the command."""
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown name, suggest the nearest known one."""
        if args and args[0] not in self._entries and not ctx.resilient_parsing:
            ctx.fail(f"There is no command '{args[0]}'{did_you_mean(args[0], self._entries)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self._entries.items()])
