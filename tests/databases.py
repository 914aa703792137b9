"""Databases for tests: migrated once per kind, then copied, so that each test quickly gets its own."""

import contextlib
import os
import shutil
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from alloop.store.migrate import upgrade
from alloop.store.session import connect

KINDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql))
NewUrl = Callable[[], str]  # each call returns the URL of another database without tables
_handles: list[sqlite3.Connection] = []  # kept here, so that garbage collection closes none of them


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "sqlite3.connect/handle":
        _handles.append(arguments[0])


sys.addaudithook(_note)


@contextlib.contextmanager
def every_sqlite_file_closed() -> Iterator[None]:
    """Fail if a SQLite file that was opened in the block is still open at its end.

    Python 3.13 and later warn of such files, but only at the next garbage collection, which may be in another test.
    """
    _handles.clear()
    yield
    left_open = []
    while _handles:
        handle = _handles.pop()
        with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed
            handle.text_factory = os.fsdecode
            left_open.append(handle.execute("PRAGMA database_list").fetchone()[2])
            handle.close()
    assert left_open == []


@pytest.fixture(params=KINDS)
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewUrl]:
    """Return a function that makes empty databases, for each kind."""
    if request.param == "sqlite":
        yield lambda: f"sqlite:///{tmp_path / uuid.uuid4().hex}.db"
        return
    port = request.getfixturevalue("postgres_port")
    made: list[str] = []

    def make() -> str:
        made.append(f"t{uuid.uuid4().hex}")
        _postgres_admin(port, f"CREATE DATABASE {made[-1]}")
        return postgres_url(port, made[-1])

    yield make
    for name in made:
        _postgres_admin(port, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def new_database(new_url: NewUrl) -> Iterator[Engine]:
    """Return a database without tables."""
    database = connect(new_url())
    yield database
    database.dispose()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQLite file with the current schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "alloop.db"
    database = connect(f"sqlite:///{path}")
    upgrade(database)
    with database.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    database.dispose()
    plain = create_engine(f"sqlite:///{path}")
    with plain.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    plain.dispose()
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_port: int) -> str:
    """Return the name of a PostgreSQL database with the current schema, to be copied."""
    _postgres_admin(postgres_port, "CREATE DATABASE migrated")
    database = connect(postgres_url(postgres_port, "migrated"))
    upgrade(database)
    database.dispose()
    return "migrated"


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Return an empty database with the current schema. Every test runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        path = tmp_path / "alloop.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        opened = connect(f"sqlite:///{path}")
        yield opened
        opened.dispose()
        return
    port = request.getfixturevalue("postgres_port")
    template = request.getfixturevalue("migrated_postgres")
    name = f"t{uuid.uuid4().hex}"
    _postgres_admin(port, f"CREATE DATABASE {name} TEMPLATE {template}")
    opened = connect(postgres_url(port, name))
    yield opened
    opened.dispose()
    _postgres_admin(port, f"DROP DATABASE {name} WITH (FORCE)")


def postgres_url(port: int, name: str) -> str:
    return f"postgresql://alloop@127.0.0.1:{port}/{name}"


def _postgres_admin(port: int, statement: str) -> None:
    admin = create_engine(
        f"postgresql+psycopg://alloop@127.0.0.1:{port}/postgres", isolation_level="AUTOCOMMIT", pool_pre_ping=False
    )
    with admin.connect() as connection:
        connection.execute(text(statement))
    admin.dispose()
