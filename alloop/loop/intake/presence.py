"""Checks that files still hold the images that were read from them. Reads the disk and records nothing."""

import datetime as dt
import os
import re
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy.orm import Session

from alloop.files import sha256_of
from alloop.pool.given import is_given
from alloop.store.images import Location, find_locations

Shown = tuple[str, str]  # a path, and the content hash of the image that people should see there
_CLOCK_STEP = dt.timedelta(seconds=2)  # coarsest resolution of a file system's times


def still_there(places: Iterable[Location]) -> list[str]:
    """Return the paths whose files still have the recorded bytes."""
    return [
        place.path
        for place in places
        if is_given(place.path) or (place.sha256 is not None and has_hash(on_disk(place.path), place.sha256, place))
    ]


def find_replaced(session: Session, shown: Iterable[Shown]) -> list[Shown]:
    """Return those files that have other bytes than the given hash. Files that cannot be read are left out."""
    wanted = list(dict.fromkeys(shown))
    known = find_locations(session, [path for path, _ in wanted])
    return [
        (path, sha256)
        for path, sha256 in wanted
        if not has_hash(on_disk(path), sha256, known.get(path), otherwise=True)
    ]


def has_hash(path: Path, sha256: str, known: Location | None, *, otherwise: bool = False) -> bool:
    """Return whether a file has the bytes with this hash. The file is not read if it was not touched since it was read.

    A file that was touched since, or shortly before, is read: its size and time may be the same with other bytes.

    Args:
        path: The file.
        sha256: Content hash of the expected bytes.
        known: Recorded location of the file, if there is one.
        otherwise: Return value for a file that does not exist or cannot be read.
    """
    stat = file_stat(path)
    if stat is None:
        return otherwise
    if known is not None and known.sha256 == sha256 and looks_untouched(stat, known):
        return True
    try:
        return sha256_of(path) == sha256
    except OSError:
        return otherwise


def looks_untouched(stat: os.stat_result, known: Location) -> bool:
    """Return whether size and time are as recorded, and the file was last touched well before it was read."""
    changed_at = dt.datetime.fromtimestamp(stat.st_ctime, dt.UTC)
    return not differs(stat, known) and known.seen_at - changed_at > _CLOCK_STEP


def differs(stat: os.stat_result, known: Location) -> bool:
    """Return whether a file's size or modification time is not as recorded."""
    return (stat.st_size, stat.st_mtime_ns) != (known.size, known.mtime_ns)


def file_stat(path: Path) -> os.stat_result | None:
    """Return size and times of a file; None if it does not exist or cannot be accessed."""
    try:
        return path.stat()
    except OSError:
        return None


def on_disk(recorded: str) -> Path:
    """Return the path on disk that a recorded path means. Reverse of `printable`."""
    if os.path.lexists(recorded):
        return Path(recorded)
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), recorded.encode())
    return Path(os.fsdecode(raw))
