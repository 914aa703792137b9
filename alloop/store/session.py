"""Database connections and transactions."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import DatabaseError as BrokenDatabase
from sqlalchemy.orm import Session

from alloop.errors import AlloopError, ConfigError, DatabaseError, TemporaryError
from alloop.files import from_folder

BUSY_SECONDS = 30
_SQLITE_OPTIONS = {"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"}
CHUNK = 500  # values per statement; older SQLite allows 999

Value = TypeVar("Value")


def sqlite_url(path: Path) -> URL:
    """Return the URL of a SQLite file, built from parts: a URL's text would be cut at the path's first `?`."""
    return URL.create("sqlite", database=str(path))


def read_url(text: str, folder: Path) -> URL:
    """Read `[database] url`. A relative path of a SQLite file is relative to `folder`.

    Raises:
        ConfigError: The text is not a database URL, or a SQLite URL without a file.
    """
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise ConfigError("[database] url is not a database URL.", "See SQLAlchemy's URL format.") from error
    if backend != "sqlite":
        return url
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ConfigError("[database] url does not name a file.", "Write it like sqlite:///labels.db.")
    if "?" in text and not set(url.query) & _SQLITE_OPTIONS:
        raise ConfigError(
            f"[database] url would be cut at its '?', which leaves {url.database}.",
            "Rename the folder or file whose name has a '?'.",
        )
    return url.set(database=str(from_folder(folder, url.database)))


def describe(url: URL) -> str:
    """Return the name of a database for messages: the file, or the URL without its password."""
    is_file = url.get_backend_name() == "sqlite"
    return str(url.database) if is_file else url.render_as_string(hide_password=True)


def connect(url: str | URL) -> Engine:
    """Return a database for one process. It is opened at its first use.

    Raises:
        ConfigError: The URL is not a database URL, or its driver is not installed.
    """
    try:
        parsed = _with_driver(make_url(url))
        is_sqlite = parsed.get_backend_name() == "sqlite"
        # A read-only connection shows the file as it was when opened, so every read opens the file again.
        looks = {} if may_write(parsed) else {"poolclass": NullPool}
        database = create_engine(parsed, pool_pre_ping=not is_sqlite, **looks)
    except ArgumentError as error:
        raise ConfigError("[database] url is not a database URL.", "See SQLAlchemy's URL format.") from error
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"No driver for the database URL: {error}.", "For PostgreSQL: pip install 'alloop[postgres]'."
        ) from error
    if is_sqlite and may_write(parsed):
        _prepare_sqlite(database)
    elif is_sqlite:
        _prepare_looking(database)
    return database


def may_write(url: URL) -> bool:
    """Return whether this process may write to a database. SQLite also writes beside the file. True for servers."""
    if url.get_backend_name() != "sqlite":
        return True
    path = os.path.realpath(str(url.database))
    return not os.path.exists(path) or (os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK))  # noqa: PTH110, PTH120 (a folder that is closed to us is no error here)


def look_only(path: Path) -> str:
    """Return the SQLite URI that opens a file for reading only. SQLite then makes no files beside it.

    Without a journal (`-wal`), the file alone is complete and is read as it is. With a journal, a writer is at work or
    was killed: SQLite then reads both files, and needs the writer's `-shm` file.
    """
    real = Path(os.path.realpath(path))
    journal = real.with_name(f"{real.name}-wal")
    has_journal = journal.exists() and journal.stat().st_size > 0
    return f"file:{quote(str(real))}?mode=ro" + ("" if has_journal else "&immutable=1")


@contextlib.contextmanager
def transaction(database: Engine, *, check_references: bool = True) -> Iterator[Session]:
    """Open a transaction: all changes are stored, or none.

    Args:
        database: The database.
        check_references: False switches foreign keys of SQLite off meanwhile, so that a table that others refer to can
            be copied. The caller then calls `check_foreign_keys`.

    Raises:
        DatabaseError: The database cannot be opened, read or written.
    """
    database = database.execution_options(alloop_foreign_keys=check_references)
    with _in_words(database), Session(database, expire_on_commit=False) as session, session.begin():
        yield session


def check_foreign_keys(session: Session) -> None:
    """Check that every foreign key of a SQLite database refers to a row. Other databases check them at once.

    Raises:
        DatabaseError: One does not.
    """
    if session.get_bind().dialect.name != "sqlite":
        return
    broken = session.connection().exec_driver_sql("PRAGMA foreign_key_check").first()
    if broken is not None:
        raise DatabaseError(
            f"The database is damaged: row {broken[1]} of the table {broken[0]} refers to a row of {broken[2]} that "
            "does not exist.",
            "Nothing was changed. Restore a backup (`alloop db backup` makes them).",
        )


@contextlib.contextmanager
def reading(database: Engine) -> Iterator[Session]:
    """Open a consistent view for reading. It never waits for a writer.

    Raises:
        DatabaseError: The database cannot be opened or read.
        TemporaryError: Another process changed the SQLite file, which was opened for reading only.
    """
    options: dict[str, Any] = {"alloop_reading": True}
    if database.url.get_backend_name() != "sqlite":  # readers of SQLite always see one state
        options |= {"isolation_level": "REPEATABLE READ"}
    looked_at = None if may_write(database.url) else Path(str(database.url.database))
    before = looked_at and _stamp(looked_at)
    with _in_words(database), Session(database.execution_options(**options), expire_on_commit=False) as session:
        yield session
    if looked_at and _stamp(looked_at) != before:
        raise TemporaryError(f"{looked_at} changed while it was read.", "Try again in a moment.")


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _with_driver(url: URL) -> URL:
    """Return a PostgreSQL URL with the driver that `alloop[postgres]` installs."""
    is_bare = url.drivername in {"postgresql", "postgres"}
    return url.set(drivername="postgresql+psycopg") if is_bare else url


def in_chunks(values: Iterable[Value]) -> Iterator[list[Value]]:
    """Yield values for `IN (…)`, in parts that every database accepts in one statement."""
    remaining = iter(values)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        yield chunk


def _prepare_sqlite(database: Engine) -> None:
    """Set up a SQLite connection: WAL, foreign keys, a wait for locks, and `BEGIN IMMEDIATE` for writers.

    pysqlite starts transactions late. alloop starts them itself, so that `BEGIN IMMEDIATE` is possible: two writers
    then wait for each other instead of failing in the middle.
    """

    @event.listens_for(database, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()

    event.listen(database, "begin", _begin)


def _begin(connection: Any) -> None:
    options = connection.get_execution_options()
    looks_only = options.get("alloop_reading", False)
    if not looks_only:  # the pragma counts for the connection, and does nothing inside a transaction
        connection.exec_driver_sql(f"PRAGMA foreign_keys = {int(options.get('alloop_foreign_keys', True))}")
    connection.exec_driver_sql("BEGIN" if looks_only else "BEGIN IMMEDIATE")


def _prepare_looking(database: Engine) -> None:
    """Open a SQLite file in read-only mode if we may not write to it."""

    @event.listens_for(database, "do_connect")
    def _open(_: Any, __: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        arguments[0] = look_only(Path(str(database.url.database)))
        options["uri"] = True

    @event.listens_for(database, "connect")
    def _begin_by_hand(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")

    event.listen(database, "begin", _begin)


@contextlib.contextmanager
def _in_words(database: Engine) -> Iterator[None]:
    """Turn environment failures (disk full, locked, unreachable) into readable errors. Other errors pass through."""
    try:
        yield
    except BrokenDatabase as error:
        # Its children are about constraints and SQL, except for one; SQLite reports a damaged file as the class itself.
        if type(error) is not BrokenDatabase and not isinstance(error, OperationalError):
            raise
        raise _explain(error, database) from error


def _explain(error: BrokenDatabase, database: Engine) -> AlloopError:
    what = str(error.orig).strip().splitlines()[0]
    where = describe(database.url)
    if "readonly" in what or "read-only" in what:
        return DatabaseError(f"{where} is read-only.", "Make the workspace writable, or copy it elsewhere.")
    if "unable to open" in what and not may_write(database.url):
        return DatabaseError(
            f"{where} has changes in a journal that SQLite has to write into it first, but you may not write there.",
            "Ask somebody who may write there to run a command once, for example `alloop status`.",
        )
    if "unable to open" in what:
        return DatabaseError(f"{where} cannot be opened.", "Check that the folder exists and that you may write there.")
    if "locked" in what:
        return DatabaseError(
            f"{where} stayed locked for {BUSY_SECONDS} seconds.", "Another program is using it. Try again later."
        )
    if "full" in what:
        return DatabaseError(
            f"The disk is full: {where} could not be written.", "Free some space and run the command again."
        )
    if "I/O error" in what:  # SQLite also reports a full disk in this way, if its journal is there
        return DatabaseError(
            f"{where} could not be read or written: {what}.",
            "The disk may be full, damaged or disconnected. Free some space and run the command again.",
        )
    if "not a database" in what or "malformed" in what:
        return DatabaseError(f"{where} is damaged: {what}.", "Restore a backup (`alloop db backup` makes them).")
    return DatabaseError(f"{where}: {what}.")
