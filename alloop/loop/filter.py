"""Which images may be asked about: `[acquisition] only`, a glob of paths or a condition on what is known of images."""

import fnmatch
import re
import sqlite3
from collections.abc import Sequence

from sqlalchemy.orm import Session

from alloop.errors import ConfigError
from alloop.store.images import ImageFacts, list_facts

OWN = ("image_id", "path", "file", "width", "height", "format")  # columns besides the attributes
_COMPARES = re.compile(
    r"[=<>]|\b(not\s+)?(like|glob)\s+'|\b(not\s+)?in\s*\(|\bis\s+(not\s+)?null\b|\b(not\s+)?between\s", re.IGNORECASE
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FUNCTIONS = {
    "abs", "coalesce", "glob", "ifnull", "iif", "instr", "length", "like", "lower", "ltrim", "max", "min", "nullif",
    "replace", "round", "rtrim", "substr", "substring", "trim", "typeof", "upper",
}  # fmt: skip


def find_matching(session: Session, only: str) -> frozenset[int]:
    """The images for which `only` holds.

    A glob has a wildcard and compares nothing. It is matched against every path of an image, from the root or from any
    folder on. Anything else is an SQL condition on one row per image: the columns of `OWN`, of which `path` is the
    first in order and `file` its last part, and every attribute, a number where all its values are numbers. What an
    image lacks is NULL.

    Raises:
        ConfigError: The condition is wrong; names the columns there are.
    """
    facts = list_facts(session)
    if is_glob(only):
        patterns = (only, f"*/{only}")
        return frozenset(
            image.image_id
            for image in facts
            if any(fnmatch.fnmatchcase(path, pattern) for path in image.paths for pattern in patterns)
        )
    return _by_condition(facts, only)


def is_glob(only: str) -> bool:
    """Whether this is a glob of paths rather than a condition."""
    return any(mark in only for mark in "*?[") and not _COMPARES.search(only)


def _by_condition(facts: Sequence[ImageFacts], condition: str) -> frozenset[int]:
    names = sorted({name for image in facts for name in image.attributes})
    columns = [*OWN, *names]
    connection = sqlite3.connect(":memory:")
    try:
        _fill(connection, facts, names)
        connection.set_authorizer(_allow)
        try:
            # A comment at its end must not swallow the parenthesis.
            found = connection.execute(f"SELECT image_id FROM image WHERE (\n{condition}\n)").fetchall()  # noqa: S608
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ConfigError(
                f"[acquisition] only = {condition!r} cannot be used: {error}.",
                f"It is a glob of paths, or an SQL condition on {', '.join(columns)}.",
            ) from error
    finally:
        connection.close()
    return frozenset(image_id for (image_id,) in found)


def _fill(connection: sqlite3.Connection, facts: Sequence[ImageFacts], names: Sequence[str]) -> None:
    if hasattr(connection, "setconfig"):  # a misspelt "column" would be a text that is equal to nothing
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DML, False)  # type: ignore[attr-defined]
    kinds = {
        name: "NUMERIC" if all(_is_number(image.attributes.get(name)) for image in facts) else "TEXT" for name in names
    }
    own = "image_id INTEGER, path TEXT, file TEXT, width INTEGER, height INTEGER, format TEXT"
    given = "".join(f', "{name}" {kind}' for name, kind in kinds.items())
    connection.execute(f"CREATE TABLE image ({own}{given})")
    connection.executemany(
        f"INSERT INTO image VALUES ({', '.join('?' * (len(OWN) + len(names)))})",  # noqa: S608 (question marks)
        (
            (
                image.image_id,
                image.paths[0] if image.paths else None,
                image.paths[0].rpartition("/")[2] if image.paths else None,
                image.width,
                image.height,
                image.format,
                *(image.attributes.get(name) for name in names),
            )
            for image in facts
        ),
    )
    connection.commit()


def _is_number(value: str | None) -> bool:
    return value is None or _NUMBER.fullmatch(value.strip()) is not None


def _allow(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """Reading this one table, and functions that only look at their arguments."""
    if action == sqlite3.SQLITE_SELECT or (action == sqlite3.SQLITE_READ and first == "image"):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
