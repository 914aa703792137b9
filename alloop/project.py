"""Open workspace: its settings, its database and the paths of its files."""

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
    """Paths of the files in a workspace."""

    root: Path
    shared_cache: Path | None = None

    @property
    def cache(self) -> Path:
        """Folder of decoded images and features; safe to delete."""
        return self.shared_cache or self.root / "cache"

    def round(self, number: int) -> Path:
        """Folder of a round's model and scores."""
        return self.root / "runs" / f"round-{number:04d}"

    def model(self, number: int) -> Path:
        """Folder of the model version of a round."""
        return self.round(number) / "model"

    def scores(self, number: int) -> Path:
        """File with the scores of the whole pool."""
        return self.round(number) / "scores.parquet"

    def inputs(self, number: int) -> Path:
        """Candidates that a round chose from, and the images that were known."""
        return self.round(number) / "inputs.parquet"

    def holdout(self, number: int) -> Path:
        """File with the predictions of a round's model for the labeled holdout images."""
        return self.round(number) / "holdout.parquet"

    def out_of_fold(self, number: int) -> Path:
        """File with predictions for a round's training images by heads that did not learn their labels."""
        return self.round(number) / "out-of-fold.parquet"

    def relative(self, path: Path) -> str:
        """Return a file's path relative to the workspace, as stored in rows, so that the folder can move."""
        return path.relative_to(self.root).as_posix()


@dataclasses.dataclass(frozen=True)
class Project:
    """Open workspace. Close it after use: `with open_project(folder) as project`.

    Attributes:
        shared_cache: Folder of features that several workspaces share; None: the workspace's own cache.
    """

    folder: Path
    config: Config
    environ: Mapping[str, str]
    shared_cache: Path | None = None

    @functools.cached_property
    def database(self) -> Engine:
        """Database of the workspace, opened at its first use."""
        return connect(database_url(self.folder, self.config))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. The next use opens it again."""
        if "database" in self.__dict__:
            self.database.dispose()

    @property
    def paths(self) -> Paths:
        """Paths of the workspace's files."""
        return Paths(self.folder, self.shared_cache)


def open_project(folder: Path, environ: Mapping[str, str] = os.environ, *, check_schema: bool = True) -> Project:
    """Open a workspace. The caller closes it.

    Raises:
        ConfigError: The folder is not a workspace, or its settings are wrong.
        DatabaseError: The schema of its database differs from the one that this alloop needs.
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
        ConfigError: `[database] url` is not a database URL, or does not name a file.
    """
    if not config.database.url:
        return sqlite_url(folder / DATABASE_FILE)
    return read_url(config.database.url, folder)
