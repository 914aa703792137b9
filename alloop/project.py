"""A workspace folder opened: its config, its database and where its files lie."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from sqlalchemy import URL, Engine

from alloop.config.load import load_config
from alloop.config.schema import Config
from alloop.store.migrate import require_current
from alloop.store.session import connect, read_url, sqlite_url

DATABASE_FILE = "alloop.db"


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where files lie in a workspace."""

    root: Path
    shared_cache: Path | None = None

    @property
    def cache(self) -> Path:
        """Decoded images and features; safe to delete."""
        return self.shared_cache or self.root / "cache"

    def round(self, number: int) -> Path:
        """One round's model, scores and sheets."""
        return self.root / "runs" / f"round-{number:04d}"

    def model(self, number: int) -> Path:
        """The model version that a round trained."""
        return self.round(number) / "model"

    def scores(self, number: int) -> Path:
        """The scores of the whole pool."""
        return self.round(number) / "scores.parquet"

    def holdout(self, number: int) -> Path:
        """What a round's model says of each labeled holdout image."""
        return self.round(number) / "holdout.parquet"

    def relative(self, path: Path) -> str:
        """How a row names a file: relative to the workspace, so that the folder can move."""
        return path.relative_to(self.root).as_posix()


@dataclasses.dataclass(frozen=True)
class Project:
    """An open workspace. Close it after use: `with open_project(folder) as project`.

    Attributes:
        shared_cache: Where features lie, when several workspaces share them; None: in the folder.
    """

    folder: Path
    config: Config
    environ: Mapping[str, str]
    shared_cache: Path | None = None

    @functools.cached_property
    def database(self) -> Engine:
        """The database, opened at first use."""
        return connect(database_url(self.folder, self.config))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database; using it again opens it again."""
        if "database" in self.__dict__:
            self.database.dispose()

    @property
    def paths(self) -> Paths:
        """Where files lie."""
        return Paths(self.folder, self.shared_cache)


def open_project(folder: Path, environ: Mapping[str, str] = os.environ, *, check_schema: bool = True) -> Project:
    """Open a workspace. The caller closes it.

    Raises:
        ConfigError: There is none here, or its settings are wrong.
        DatabaseError: Its database has another schema than this alloop works with.
    """
    root = folder.absolute()
    project = Project(root, load_config(root, environ), environ)
    if check_schema:
        try:
            require_current(project.database)
        except BaseException:
            project.close()
            raise
    return project


def database_url(folder: Path, config: Config) -> URL:
    """Return the URL of the configured database, or of the workspace's SQLite file.

    Raises:
        ConfigError: `[database] url` is not a database URL, or names no file.
    """
    if not config.database.url:
        return sqlite_url(folder / DATABASE_FILE)
    return read_url(config.database.url, folder)
