"""Attributes of images, such as where or when they were taken, from a CSV; `[acquisition] only` chooses by them."""

import re
from collections.abc import Sequence
from pathlib import Path

from alloop.errors import PoolError
from alloop.loop.choosing.filter import OWN
from alloop.loop.intake.named_images import FileFinder
from alloop.loop.workbench import Workbench
from alloop.spreadsheet import Row, read_table
from alloop.store.images import find_image_ids, list_attribute_names, list_locations, set_attributes
from alloop.store.session import transaction
from alloop.store.workspace import add_event

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_TAKEN = {*OWN, "sha256"}


def add_attributes(bench: Workbench, path: Path) -> tuple[int, tuple[str, ...]]:
    """Read a CSV with a column `file` or `sha256` and other columns, which become attributes of the images.

    A file is found by its full path, by its path relative to the CSV, or by its name if only one image has it. Existing
    values of these attributes are replaced; an empty cell removes the value.

    Returns:
        (images, names of the attributes).

    Raises:
        PoolError: A column or a file cannot be used; nothing is recorded then.
    """
    names, rows = _read(path)
    with transaction(bench.project.database) as session:
        _check_names(path, names, list_attribute_names(session))
        find = FileFinder(list_locations(session), path.absolute().parent)
        given: dict[str, dict[str, str]] = {}
        for row in rows:
            sha256 = find.of_row(row, path, PoolError, "Nothing was recorded.")
            values = {name: row.get(name) for name in names}
            if given.setdefault(sha256, values) != values:
                raise PoolError(
                    f"{path}, line {row.line}: an earlier line has other values for the same image "
                    f"(sha256 {sha256[:12]}).",
                    "Keep one of the two lines. Nothing was recorded.",
                )
        ids = find_image_ids(session, given)
        set_attributes(session, {ids[sha256]: values for sha256, values in given.items()})
        add_event(session, bench.user, "attributes", bench.now(), file=path.name, images=len(ids), names=names)
    return len(ids), tuple(names)


def _check_names(path: Path, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that differ from an existing attribute only in capitals, because SQL ignores capitals."""
    spelled = {name.lower(): name for name in known}
    for name in names:
        if (other := spelled.get(name.lower(), name)) != name:
            raise PoolError(
                f"{path}: images already have an attribute {other!r}, and {name!r} differs from it only in capitals.",
                f"Rename the column to {other!r}. Nothing was recorded.",
            )


def _read(path: Path) -> tuple[list[str], tuple[Row, ...]]:
    table = read_table(path, PoolError, [], one_of=["file", "sha256"])
    names = [name for name in table.columns if name not in ("file", "sha256")]
    if not names:
        raise PoolError(
            f"{path} has the columns {', '.join(table.columns)}.",
            "It needs a column 'file' or 'sha256', and one column per attribute.",
        )
    for name in names:
        if not _NAME.fullmatch(name) or name.lower() in _TAKEN:
            raise PoolError(
                f"{path}, line {table.line}: an attribute cannot be called {name!r}.",
                f"A name has letters, digits and underscores. These names are reserved: {', '.join(sorted(_TAKEN))}.",
            )
    twice = sorted({name for name in names if sum(other.lower() == name.lower() for other in names) > 1})
    if twice:
        raise PoolError(
            f"{path}, line {table.line}: there are two columns {twice[0]!r}; capitals do not count.",
            "Rename one of them. Nothing was recorded.",
        )
    return names, table.rows
