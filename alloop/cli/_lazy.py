"""Help without imports: a group knows its commands' summaries, and loads a command only to run it or to describe it."""

import dataclasses
import importlib
from collections.abc import Mapping

import click

from alloop.errors import did_you_mean


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a command lives (`package.module:name`) and its one-line summary."""

    target: str
    summary: str


class LazyGroup(click.Group):
    """A group whose commands are named in a table."""

    def __init__(self, *args: object, entries: Mapping[str, Entry], **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table, which is the order of use."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but a name that is not known is answered with the nearest that is."""
        if args and args[0] not in self._entries and not ctx.resilient_parsing:
            ctx.fail(f"There is no command '{args[0]}'{did_you_mean(args[0], self._entries)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self._entries.items()])
