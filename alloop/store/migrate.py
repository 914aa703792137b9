"""Schemas of databases: the present one, the one that this alloop needs, and the upgrade between them."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Engine, String, column, inspect, select, table

from alloop.errors import DatabaseError
from alloop.store.session import check_foreign_keys, describe, reading, transaction

# A line like `down_revision = "0001"`; the first migration has None.
_NAMED = re.compile(r'^(revision|down_revision) = (?:"(\w+)"|None)$', re.MULTILINE)
_VERSION = table("alembic_version", column("version_num", String))


def migrations_folder() -> Path:
    """Return the folder of the migrations: in the installed package, or at the top of a source checkout."""
    installed = Path(__file__).parent / "migrations"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "migrations"


def head_revision() -> str:
    """Return the schema that this alloop needs."""
    revisions = list_revisions(migrations_folder())
    (head,) = revisions.keys() - set(revisions.values())  # the one that no other migration follows
    return head


@functools.cache
def list_revisions(folder: Path) -> Mapping[str, str | None]:
    """Return each migration with the one before it, read from the files without running them.

    Alembic takes longer to import than everything else that opens a workspace, so only `upgrade` uses it.
    """
    files = sorted((folder / "versions").glob("*.py"))
    named = [dict(_NAMED.findall(path.read_text(encoding="utf-8"))) for path in files]
    return {names["revision"]: names["down_revision"] or None for names in named}


def current_revision(database: Engine) -> str | None:
    """Return the schema of a database; None if the database is empty or missing. A missing file is not created."""
    if _is_missing(database):
        return None
    with reading(database) as session:
        if not inspect(session.connection()).has_table(_VERSION.name):
            return None
        return session.scalar(select(_VERSION.c.version_num))


def _is_missing(database: Engine) -> bool:
    """Return whether there is no file of a SQLite database in a folder that we may look into."""
    url = database.url
    if url.get_backend_name() != "sqlite" or not url.database:
        return False
    try:
        return Path(url.database).parent.is_dir() and not Path(url.database).exists()
    except PermissionError:
        return False


def upgrade(database: Engine) -> None:
    """Upgrade a database to the schema that this alloop needs.

    Raises:
        DatabaseError: A newer alloop made the database, or it holds references to rows that do not exist.
    """
    from alembic import command
    from alembic.config import Config as AlembicConfig

    refuse_newer(database)
    config = AlembicConfig()
    # Alembic uses configparser, where % begins a reference to another setting.
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    with transaction(database, check_references=False) as session:
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "head")
        check_foreign_keys(session)


def require_current(database: Engine) -> None:
    """Refuse a database whose schema differs from the one that this alloop needs.

    Raises:
        DatabaseError: The schema is older, newer or missing; the hint names the command to run.
    """
    current = refuse_newer(database)
    if current is None:
        raise DatabaseError(
            f"The database {describe(database.url)} is empty.",
            "If the workspace had a database before, put it back. For a new one, run `alloop db upgrade`.",
        )
    if current != head_revision():
        raise DatabaseError(
            f"The database {describe(database.url)} has schema {current}, but this alloop needs {head_revision()}.",
            "Run `alloop db backup`, then `alloop db upgrade`.",
        )


def refuse_newer(database: Engine) -> str | None:
    """Refuse a database of a schema that this alloop does not know.

    Returns:
        Its schema; None if the database is empty.

    Raises:
        DatabaseError: Its schema is not among our migrations.
    """
    current = current_revision(database)
    if current is not None and current not in list_revisions(migrations_folder()):
        raise DatabaseError(
            f"The database {describe(database.url)} has schema {current}, which this alloop does not know: a newer "
            "alloop made it.",
            "Upgrade with `pip install --upgrade alloop`.",
        )
    return current
