"""Checks that locations still hold the images that were read from them. Records nothing."""

import datetime as dt
from collections.abc import Iterable

from sqlalchemy.orm import Session

from alloop.pool.sources import Stamp, content_hash, find_source
from alloop.store.images import Location, find_locations

Shown = tuple[str, str]  # location, and content hash of the image that people should see there
_CLOCK_STEP = dt.timedelta(seconds=2)  # coarsest resolution of a file system's times


def still_there(places: Iterable[Location]) -> list[str]:
    """Return the locations that still have the recorded bytes."""
    return [
        place.path
        for place in places
        if find_source(place.path).is_lasting
        or (place.sha256 is not None and has_hash(place.path, place.sha256, place))
    ]


def find_replaced(session: Session, shown: Iterable[Shown]) -> list[Shown]:
    """Return those locations that have other bytes than the given hash. Those that cannot be read are left out."""
    wanted = [(path, sha256) for path, sha256 in dict.fromkeys(shown) if not find_source(path).is_lasting]
    known = find_locations(session, [path for path, _ in wanted])
    return [(path, sha256) for path, sha256 in wanted if not has_hash(path, sha256, known.get(path), otherwise=True)]


def has_hash(location: str, sha256: str, known: Location | None, *, otherwise: bool = False) -> bool:
    """Return whether a location has the bytes with this hash. Bytes that were not touched since are not read again.

    A file that was touched since, or shortly before, is read: its size and time may be the same with other bytes.

    Args:
        location: Location of the bytes.
        sha256: Content hash of the expected bytes.
        known: Recorded location, if there is one.
        otherwise: Return value for bytes that are gone or cannot be read.
    """
    stamp = find_source(location).stamp(location)
    if stamp is None:
        return otherwise
    if known is not None and known.sha256 == sha256 and looks_untouched(stamp, known):
        return True
    return reads_as(location, sha256, otherwise=otherwise)


def reads_as(location: str, sha256: str, *, otherwise: bool = False) -> bool:
    """Read a location, and return whether it has the bytes with this hash; `otherwise` if it cannot be read."""
    try:
        return content_hash(location) == sha256
    except OSError:
        return otherwise


def looks_untouched(stamp: Stamp, known: Location) -> bool:
    """Return whether size and time are as recorded, and the bytes were last touched well before they were read."""
    changed_at = dt.datetime.fromtimestamp(stamp.touched, dt.UTC)
    return not differs(stamp, known) and known.seen_at - changed_at > _CLOCK_STEP


def differs(stamp: Stamp, known: Location) -> bool:
    """Return whether the size or the modification time is not as recorded."""
    return (stamp.size, stamp.mtime_ns) != (known.size, known.mtime_ns)
