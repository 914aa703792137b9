"""Filter `[acquisition] only`: a glob of paths, or a condition on facts about images."""

import contextlib
import fnmatch
import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sqlalchemy.orm import Session

from alloop.errors import ConfigError
from alloop.loop.choosing.condition import Value, find_text_as_number, is_number
from alloop.store.images import ImageFacts, list_facts

OWN = ("image_id", "path", "file", "width", "height", "format")  # columns besides the attributes
_COMPARES = re.compile(
    r"[=<>]|\b(not\s+)?(like|glob)\s+'|\b(not\s+)?in\s*\(|\bis\s+(not\s+)?null\b|\b(not\s+)?between\s", re.IGNORECASE
)
_OWN_KINDS = ("INTEGER", "TEXT", "TEXT", "INTEGER", "INTEGER", "TEXT")
_FUNCTIONS = {
    "abs", "coalesce", "glob", "ifnull", "iif", "instr", "length", "like", "lower", "ltrim", "max", "min", "nullif",
    "replace", "round", "rtrim", "substr", "substring", "trim", "typeof", "upper",
}  # fmt: skip


def find_matching(session: Session, only: str) -> frozenset[int]:
    """Return the images that match `only`.

    A glob has a wildcard and no comparison. It is matched against every path of an image, from the root or from any
    folder. Any other text is an SQL condition on one row per image: the columns of `OWN` (`path` is the first path in
    order, `file` its last part), and all attributes, which are numbers if all their values are numbers. Missing values
    are NULL.

    Raises:
        ConfigError: The condition is wrong (the error names the available columns), or it uses a text as a number.
    """
    facts = list_facts(session)
    if is_glob(only):
        patterns = (only, f"*/{only}")
        return frozenset(
            image.image_id
            for image in facts
            if any(fnmatch.fnmatchcase(path, pattern) for path in image.paths for pattern in patterns)
        )
    return matching_condition(facts, only)


def is_glob(only: str) -> bool:
    """Return whether the text is a glob of paths and not a condition."""
    return any(mark in only for mark in "*?[") and not _COMPARES.search(only)


def matching_condition(facts: Sequence[ImageFacts], condition: str) -> frozenset[int]:
    """Return the ids of the images for which an SQL condition holds.

    Raises:
        ConfigError: SQLite refuses the condition, or the condition uses a text as a number.
    """
    names = sorted({name for image in facts for name in image.attributes})
    kinds = dict(zip(OWN, _OWN_KINDS, strict=True)) | {name: _kind(name, facts) for name in names}
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        _fill(connection, facts, kinds)
        connection.set_authorizer(_allow)
        try:
            # The line break keeps a comment at the end from hiding the parenthesis.
            found = connection.execute(f"SELECT image_id FROM image WHERE (\n{condition}\n)").fetchall()  # noqa: S608
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ConfigError(
                f"[acquisition] only = {condition!r} cannot be used: {error}.",
                f"It is a glob of paths, or an SQL condition on {', '.join(kinds)}.",
            ) from error
    text = find_text_as_number(condition, {name.lower(): kind == "TEXT" for name, kind in kinds.items()})
    if text is not None:
        raise _refusal(condition, text, facts)
    return frozenset(image_id for (image_id,) in found)


def _kind(name: str, facts: Sequence[ImageFacts]) -> str:
    values = (image.attributes.get(name) for image in facts)
    return "NUMERIC" if all(value is None or is_number(value) for value in values) else "TEXT"


def _fill(connection: sqlite3.Connection, facts: Sequence[ImageFacts], kinds: Mapping[str, str]) -> None:
    if sys.version_info >= (3, 12):  # a misspelled "column" would be a text that equals nothing
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DML, False)
    columns = ", ".join(f'"{name}" {kind}' for name, kind in kinds.items())
    connection.execute(f"CREATE TABLE image ({columns})")
    marks = ", ".join("?" * len(kinds))
    connection.executemany(f"INSERT INTO image VALUES ({marks})", (_cells(image, kinds) for image in facts))  # noqa: S608
    connection.commit()


def _cells(image: ImageFacts, names: Iterable[str]) -> list[str | int | None]:
    path = image.paths[0] if image.paths else None
    own = (image.image_id, path, path and path.rpartition("/")[2], image.width, image.height, image.format)
    known: dict[str, str | int | None] = {**image.attributes, **dict(zip(OWN, own, strict=True))}
    return [known.get(name) for name in names]


def _refusal(condition: str, text: Value, facts: Sequence[ImageFacts]) -> ConfigError:
    only = f"[acquisition] only = {condition!r}"
    if text.column is None:
        return ConfigError(
            f"{only} uses the text {text.words} as a number.",
            "Compare texts with texts ('2020' in quotes) and numbers with numbers (2020).",
        )
    cells = [(cell, image) for image in facts for cell in _column(image, text.column) if not is_number(str(cell))]
    cell, image = cells[0]
    of = image.paths[0] if image.paths else f"image {image.image_id}"
    others = f" (and is not a number for {len(cells) - 1} other images)" if len(cells) > 1 else ""
    return ConfigError(
        f"{only} uses {text.words} as a number, but its value is {cell!r} for {of}{others}.",
        "Correct the table to plain numbers (3.5, not 3,5 or 03; leave unknown values empty) and read it again with "
        "`alloop pool add --attributes`, or compare with texts in quotes.",
    )


def _column(image: ImageFacts, column: str) -> Iterator[str | int]:
    """Yield the image's value in a column, if it has one. Capitals in the name do not count, as in SQL."""
    names = [name for name in (*OWN, *image.attributes) if name.lower() == column]
    yield from (cell for cell in _cells(image, names) if cell is not None)


def _allow(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """Allow reading this table, and functions that only use their arguments."""
    if action == sqlite3.SQLITE_SELECT or (action == sqlite3.SQLITE_READ and first == "image"):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
