"""Schemas of databases: the present one, the one that this alloop needs, and the upgrade between them."""

import functools
from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Engine

from alloop.errors import DatabaseError
from alloop.store.session import check_foreign_keys, describe, reading, transaction


def migrations_folder() -> Path:
    """Return the folder of the migrations: in the installed package, or at the top of a source checkout."""
    installed = Path(__file__).parent / "migrations"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "migrations"


def head_revision() -> str:
    """Return the schema that this alloop needs."""
    return str(_scripts().get_current_head())


def current_revision(database: Engine) -> str | None:
    """Return the schema of a database; None if the database is empty."""
    with reading(database) as session:
        return MigrationContext.configure(session.connection()).get_current_revision()


def upgrade(database: Engine) -> None:
    """Upgrade a database to the schema that this alloop needs.

    Raises:
        DatabaseError: A newer alloop made the database, or it holds references to rows that do not exist.
    """
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
    refuse_newer(database)
    current = current_revision(database)
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


def refuse_newer(database: Engine) -> None:
    """Refuse a database of a schema that this alloop does not know.

    Raises:
        DatabaseError: Its schema is not among our migrations.
    """
    current = current_revision(database)
    try:
        if current is not None:
            _scripts().get_revision(current)
    except CommandError as error:
        raise DatabaseError(
            f"The database {describe(database.url)} has schema {current}, which this alloop does not know: a newer "
            "alloop made it.",
            "Upgrade with `pip install --upgrade alloop`.",
        ) from error


def _scripts() -> ScriptDirectory:
    return _scripts_in(migrations_folder())


@functools.cache
def _scripts_in(folder: Path) -> ScriptDirectory:
    # A ScriptDirectory imports the migrations at its first use, and keeps them.
    return ScriptDirectory(str(folder))
