"""Which schema a database has, which one this alloop wants, and the way from one to the other."""

from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Engine

from alloop.errors import DatabaseError
from alloop.store.session import describe, reading, transaction


def migrations_folder() -> Path:
    """The migrations: inside the installed package, or at the top of a source checkout."""
    installed = Path(__file__).parent / "migrations"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "migrations"


def head_revision() -> str:
    """The schema this alloop works with."""
    return str(_scripts().get_current_head())


def current_revision(database: Engine) -> str | None:
    """The schema a database has; None when it is empty."""
    with reading(database) as session:
        return MigrationContext.configure(session.connection()).get_current_revision()


def upgrade(database: Engine) -> None:
    """Bring a database to the schema this alloop works with; one that is there already stays as it is.

    Raises:
        DatabaseError: It was made by a newer alloop.
    """
    refuse_newer(database)
    config = AlembicConfig()
    # Alembic uses configparser, where % begins a reference to another setting.
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    with transaction(database) as session:
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "head")


def require_current(database: Engine) -> None:
    """Refuse to work with any other schema than ours.

    Raises:
        DatabaseError: The schema is older, newer or absent; the hint names the command that helps.
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
    """Refuse a database that this alloop does not know.

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
    return ScriptDirectory(str(migrations_folder()))
