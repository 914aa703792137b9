"""Images that people name in tables, by file name or content hash."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from alloop.errors import AlloopError, LabelError, PoolError
from alloop.loop.intake.presence import has_hash
from alloop.names import composed, file_spellings
from alloop.pool.sources import LOCAL, content_hash, find_source, scheme_of
from alloop.spreadsheet import Row, read_table
from alloop.store.images import Location, list_locations

SHORTEST = 4  # smallest number of digits that count as a hash


def listed_images(path: Path) -> list[str]:
    """Return the locations of the images that a CSV with the columns `file` and `label` names.

    Raises:
        LabelError: The column is missing, or a file is not there.
    """
    files = []
    for row in read_table(path, LabelError, ["label"], one_of=["file", "sha256"]).rows:
        if not row.file:
            raise LabelError(f"{path}, line {row.line} names no file.", "It needs the columns 'file' and 'label'.")
        files.append(find_named(path, row))
    return files


def find_named(path: Path, row: Row) -> str:
    """Return the location of the image that a row of a table names, relative to the table's own folder.

    Raises:
        LabelError: The file does not exist.
    """
    folder = path.absolute().parent
    found = find_source(row.file).find(row.file, folder)
    if found is None:
        where = f"{path}, line {row.line}"
        raise LabelError(f"{where} names {folder / row.file}, which does not exist.", "Correct the table.")
    return found


def find_images(session: Session, files: Sequence[str], sha256s: Sequence[str] = ()) -> list[int]:
    """Find the images of the pool that people name on the command line.

    Args:
        session: Database session to read from.
        files: Paths, relative to the current folder, or file names.
        sha256s: Beginnings of content hashes, at least 4 hex digits.

    Raises:
        PoolError: A name means no image of the pool, or several.
    """
    places = list_locations(session)
    finder = FileFinder(places, Path.cwd())
    by_hash = {place.sha256: place.image_id for place in places if place.sha256 and place.image_id is not None}
    found = []
    for name in files:
        sha256 = finder(name)
        if sha256 is None and (n := finder.count(name)) > 1:
            raise PoolError(f"{n} images are called {name}. Nothing was recorded.", "Write the path of one of them.")
        if sha256 is None:
            raise PoolError(
                f"{name} is not in the pool. Nothing was recorded.", "`alloop pool list` shows the images of the pool."
            )
        found.append(by_hash[sha256])
    for start in sha256s:
        same = [i for sha256, i in by_hash.items() if len(start) >= SHORTEST and sha256.startswith(start.lower())]
        if len(same) != 1:
            raise PoolError(
                f"{len(same) or 'No'} images of the pool have a hash that begins with {start}. Nothing was recorded.",
                f"Give {SHORTEST} digits or more, and as many as name one image; `alloop pool list` shows the hashes.",
            )
        found += same
    return found


class FileFinder:
    """Content hashes of the pool's images, by the file names that people write.

    Args:
        locations: Locations of the pool.
        base: Folder that relative names are relative to.
    """

    def __init__(self, locations: Sequence[Location], base: Path) -> None:
        self._base = base
        self._places = {location.path: location for location in locations}
        self._by_path = {location.path: location.sha256 for location in locations if location.sha256}
        self._hashes = set(self._by_path.values())
        self._by_name: dict[str, set[str]] = {}
        # Names with letters beyond ASCII are found in both Unicode forms (NFC, NFD) if they mean only one image.
        self._by_letters: dict[str, set[str]] = {}
        for path, sha256 in self._by_path.items():
            name = os.path.basename(path)  # noqa: PTH119 (strings, a million of them)
            self._by_name.setdefault(name, set()).add(sha256)
            if not path.isascii():
                self._by_letters.setdefault(composed(path), set()).add(sha256)
            if not name.isascii():
                self._by_letters.setdefault(composed(name), set()).add(sha256)

    def __call__(self, name: str) -> str | None:
        spellings = file_spellings(name)
        exact = (self._find(self._by_path.get, self._by_name, spelled) for spelled in spellings)
        alike = (self._find(self._alone, self._by_letters, composed(spelled)) for spelled in spellings)
        return next(filter(None, itertools.chain(exact, alike)), None)

    def count(self, name: str) -> int:
        """Count the images with this file name."""
        return max(len(self._by_name.get(spelled, ())) for spelled in file_spellings(name))

    def of_row(self, row: Row, path: Path, refusal: type[AlloopError], undone: str) -> str:
        """Return the content hash of the image that a row names in `sha256` or `file`.

        Args:
            row: Row of the table.
            path: File of the table, for errors.
            refusal: Class of the errors.
            undone: Sentence that says what did not happen.

        Raises:
            AlloopError: An error of the class `refusal`: the row names no image of the pool, or several.
        """
        where, name = f"{path}, line {row.line}", row.file
        found = row.get("sha256").lower() or self._content(name) or self(name)
        if found is None and (n := self.count(name)) > 1:
            raise refusal(
                f"{where}: {n} images are called {name}.",
                f"Write its path (from the file's own folder, or in full), or its sha256. {undone}",
            )
        if found is None or found not in self._hashes:
            raise refusal(
                f"{where}: {name or row.get('sha256')} is not in the pool, or was replaced since it was added.",
                f"Add the images with `alloop pool add` first. {undone}",
            )
        return found

    def _content(self, name: str) -> str | None:
        """Return the hash of the bytes that a file has now, whatever is recorded; None if the file does not exist."""
        for spelled in filter(None, file_spellings(name)):
            path = self._full(spelled)
            stamp = find_source(path).stamp(path)
            if stamp is not None and stamp.is_file:
                known = self._places.get(path)
                same = known is not None and known.sha256 is not None and has_hash(path, known.sha256, known)
                return known.sha256 if known is not None and same else content_hash(path)
        return None

    def _find(self, by_path: Callable[[str], str | None], by_name: Mapping[str, set[str]], name: str) -> str | None:
        named = by_name.get(name, set())
        alone = next(iter(named)) if len(named) == 1 else None
        return by_path(self._full(name)) or by_path(name) or alone

    def _full(self, name: str) -> str:
        """Return the location that a name in the table means. A table has no globs and no `~`."""
        return name if scheme_of(name) != LOCAL else os.path.normpath(self._base / name)

    def _alone(self, path: str) -> str | None:
        found = self._by_letters.get(composed(path), set())
        return next(iter(found)) if len(found) == 1 else None
