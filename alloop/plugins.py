"""Things that are found by name: in a table of alloop's own, or through an entry point of an installed package.

A table holds `module:name` texts, as entry points do. Nothing is imported until it is asked for.
"""

import importlib.metadata
from collections.abc import Mapping

from alloop.errors import ConfigError


def list_installed(group: str) -> tuple[str, ...]:
    """Return the names that installed packages add to a group of entry points, without importing the packages."""
    return tuple(sorted(point.name for point in importlib.metadata.entry_points(group=group)))


def load_named(kind: str, name: str, group: str, own: Mapping[str, str], hint: str) -> object:
    """Import what a name stands for. A name of alloop's own table goes before an installed one.

    Args:
        kind: Word for errors, such as "strategy".
        name: Name in the table or in the group.
        group: Group of entry points.
        own: Table of alloop's own: name → `module:name`.
        hint: Way out if another package cannot be used.

    Raises:
        ConfigError: Another package's object cannot be imported.
        KeyError: Neither the table nor an installed package has this name.
    """
    if name in own:
        return importlib.metadata.EntryPoint(name, own[name], group).load()
    points = importlib.metadata.entry_points(group=group, name=name)
    if not points:
        raise KeyError(name)
    point = next(iter(points))
    try:
        return point.load()
    except Exception as error:  # whatever another package does while it is imported
        raise ConfigError(
            f"the {kind} {name} of the package {package_of(name, group)} cannot be imported: "
            f"{type(error).__name__}: {error}",
            f"Install what it needs, or {hint}.",
        ) from error


def package_of(name: str, group: str) -> str:
    """Return the package that adds a name to a group of entry points, or where the name leads if that is not known."""
    point = next(iter(importlib.metadata.entry_points(group=group, name=name)))
    return point.dist.name if point.dist is not None else point.value
