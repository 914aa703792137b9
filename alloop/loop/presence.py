"""Whether files still hold the images that were read from them. Looks at the disk and records nothing."""

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
_CLOCK_STEP = dt.timedelta(seconds=2)  # how coarse the times of a file system may be


def still_there(places: Iterable[Location]) -> list[str]:
    """Paths where the bytes that were recorded still lie. Nothing is recorded."""
    return [
        place.path
        for place in places
        if is_given(place.path) or (place.sha256 is not None and has_hash(on_disk(place.path), place.sha256, place))
    ]


def find_replaced(session: Session, shown: Iterable[Shown]) -> list[Shown]:
    """Those of the files that hold other bytes than the ones meant. A file that cannot be read says nothing."""
    wanted = list(dict.fromkeys(shown))
    known = find_locations(session, [path for path, _ in wanted])
    return [
        (path, sha256)
        for path, sha256 in wanted
        if not has_hash(on_disk(path), sha256, known.get(path), otherwise=True)
    ]


def has_hash(path: Path, sha256: str, known: Location | None, *, otherwise: bool = False) -> bool:
    """Whether a file has these bytes. One that looks exactly as when it was read with them is not read again.

    A file that was touched about then or since is read: size and time may be those of the old bytes all the same.

    Args:
        path: The file.
        sha256: Of the bytes.
        known: What is recorded of it.
        otherwise: What to say of a file that is not there or cannot be read.
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
    """Whether a file looks as when it was read, and was touched neither since nor about then."""
    changed_at = dt.datetime.fromtimestamp(stat.st_ctime, dt.UTC)
    return not differs(stat, known) and known.seen_at - changed_at > _CLOCK_STEP


def differs(stat: os.stat_result, known: Location) -> bool:
    """Whether a file looks other than when it was read."""
    return (stat.st_size, stat.st_mtime_ns) != (known.size, known.mtime_ns)


def file_stat(path: Path) -> os.stat_result | None:
    """Size and times of a file; None where there is none that can be looked at."""
    try:
        return path.stat()
    except OSError:
        return None


def on_disk(recorded: str) -> Path:
    """The path that a row means: the reverse of `printable`."""
    if os.path.lexists(recorded):
        return Path(recorded)
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), recorded.encode())
    return Path(os.fsdecode(raw))
