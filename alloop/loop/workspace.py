"""Creation of a workspace, and care of its database."""

import contextlib
import datetime as dt
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import text

from alloop.composition import DEFAULT_BACKEND
from alloop.config.load import FILE_NAME, parse_config
from alloop.config.template import render_config
from alloop.errors import DatabaseError, WorkspaceError
from alloop.files import atomic_path, is_stream, write_bytes
from alloop.labeling.build import check_classes
from alloop.loop.writer import actor
from alloop.pool.local_files import printable
from alloop.pool.sources import full_name
from alloop.project import DATABASE_FILE, Project, open_project
from alloop.store.migrate import head_revision, upgrade
from alloop.store.session import look_only, may_write, reading, sqlite_url, transaction
from alloop.store.workspace import add_event, add_workspace, find_workspace_uuid


def new_config(
    folder: Path,
    name: str | None,
    classes: Sequence[str],
    images: Sequence[str],
    label_studio_url: str,
    backend: str = DEFAULT_BACKEND,
) -> str:
    """Return the text of a new workspace's alloop.toml. Paths of images are relative to the current folder.

    Raises:
        WorkspaceError: A folder of images has a name that is not valid UTF-8.
    """
    places = [full_name(image, os.getcwd()) for image in images]  # noqa: PTH109
    odd = [printable(place) for place in places if printable(place) != place]
    if odd:
        raise WorkspaceError(
            f"The folder name {odd[0]} is not valid UTF-8, so alloop.toml cannot hold it.", "Rename the folder."
        )
    return render_config(printable(name or folder.absolute().name)[:40], classes, places, label_studio_url, backend)


def create_workspace(folder: Path, content: str) -> Path:
    """Write alloop.toml and create the database.

    Returns:
        Path of alloop.toml.

    Raises:
        WorkspaceError: The workspace already exists, or the folder cannot be written.
        ConfigError: The settings are refused; nothing is written.
    """
    path = folder / FILE_NAME
    if path.exists():
        raise WorkspaceError(f"{path} already exists.", "Edit it, or choose another folder.")
    check_classes(parse_config(content, str(path)))
    write_bytes(path, content.encode())
    try:
        with open_project(folder, check_schema=False) as project:
            upgrade_database(project)
    except BaseException:
        path.unlink()
        raise
    return path


def upgrade_database(project: Project) -> None:
    """Create the tables, or upgrade them to this version's schema; give a new database its identity."""
    upgrade(project.database)
    now = dt.datetime.now(dt.UTC)
    with transaction(project.database) as session:
        add_workspace(session, now)
        add_event(session, actor(), "database upgraded", now)


def backup_database(project: Project, target: Path) -> Path:
    """Copy a SQLite database, even while others write to it. The copy is checked before it takes its name.

    Raises:
        DatabaseError: The database is not SQLite, or the copy is damaged.
        WorkspaceError: The target exists or cannot be written.
    """
    if project.database.url.get_backend_name() != "sqlite":
        raise DatabaseError("alloop can only back up SQLite databases.", "Use pg_dump for PostgreSQL.")
    if target.exists() and not is_stream(target):
        raise WorkspaceError(f"{target} already exists.", "Name another file; backups are never overwritten.")
    source = Path(str(project.database.url.database))
    if not source.exists():
        raise DatabaseError(f"{source} does not exist.", "Create it with `alloop db upgrade`.")
    with atomic_path(target) as temporary:
        _copy_sqlite(source, temporary)
    return target


def _open_source(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path) if may_write(sqlite_url(path)) else sqlite3.connect(look_only(path), uri=True)


def _copy_sqlite(source: Path, target: Path) -> None:
    try:
        # The connection's own `with` only ends a transaction and does not close it.
        with (
            contextlib.closing(_open_source(source)) as reader,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            reader.backup(copy)
            sound = copy.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        raise DatabaseError(f"{source} could not be copied: {error}.") from error
    finally:
        with_suffixes = [target.with_name(target.name + suffix) for suffix in ("-wal", "-shm")]
        for leftover in with_suffixes:
            leftover.unlink(missing_ok=True)
    if sound != "ok":
        raise DatabaseError(f"The copy of {source} is damaged: {sound}.", "Check the disk.")


def default_backup(project: Project) -> Path:
    """Return the path of a new backup, named by date and time."""
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    return project.folder / "backups" / f"{Path(DATABASE_FILE).stem}-{stamp}.db"


def check_database(project: Project) -> str:
    """Check that the database is intact.

    Returns:
        Schema of the database, which is the one that this alloop needs.

    Raises:
        DatabaseError: The database is damaged, or rows refer to rows that do not exist.
    """
    with reading(project.database) as session:
        if project.database.url.get_backend_name() == "sqlite":
            sound = session.execute(text("PRAGMA integrity_check")).scalar_one()
            dangling = session.execute(text("PRAGMA foreign_key_check")).first()
            if sound != "ok" or dangling is not None:
                what = sound if sound != "ok" else f"a row of {dangling[0] if dangling else ''} points nowhere"
                raise DatabaseError(f"The database is damaged: {what}.", "Restore a backup (`alloop db backup`).")
        find_workspace_uuid(session)
    return head_revision()
