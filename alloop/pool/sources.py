"""The port for image sources: places where the pool's images lie.

A location is a URI, and its scheme names the source. `/` separates its parts, and the last part is the file's name. A
location without a known scheme is a path of a local file, so the paths in a database and in alloop.toml are locations
too. alloop's own sources are listed in `SOURCES`. Other packages add theirs through the entry points `alloop.sources`,
each of which leads to an `ImageSource`.

Sources are not handed around: the location alone names its source, also in a job that runs in another process or on
another machine.
"""

import dataclasses
import functools
import hashlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Protocol, runtime_checkable

from alloop.errors import ConfigError, PoolError
from alloop.plugins import list_installed, load_named

LOCAL = "file"
SOURCES: Mapping[str, str] = {
    LOCAL: "alloop.pool.local_files:LOCAL_DISK",
    "row": "alloop.pool.given:GIVEN_ROWS",
}
SOURCE_GROUP = "alloop.sources"  # the entry points by which others add theirs; the name is the scheme
_loaded: dict[str, "ImageSource"] = {}  # by scheme


@dataclasses.dataclass(frozen=True, slots=True)
class Stamp:
    """Facts that change when the bytes at a location change, and that are cheaper to get than the bytes.

    Attributes:
        size: Number of bytes.
        mtime_ns: Time of the last modification, in nanoseconds.
        touched: Time of the last change of any kind, in seconds. A program that sets `mtime_ns` back does not set it.
        is_file: False for a folder, a pipe or a device.
    """

    size: int
    mtime_ns: int
    touched: float
    is_file: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes at a location with their stamp; without bytes, the reason in words.

    Attributes:
        reason: Empty if there are bytes, or if there are more bytes than were asked for.
    """

    size: int
    mtime_ns: int
    data: bytes | None = None
    reason: str = ""


@dataclasses.dataclass
class Skipped:
    """Entries that `expand` left out, counted while it walks.

    Attributes:
        not_images: Files in walked folders and among a glob's matches, by extension in lower case.
        names: Number of hidden files and folders, and of those that systems, network drives or alloop made, by name. In
            a walk a folder counts as one; of a glob each match counts.
        special: Pipes, sockets and devices.
    """

    not_images: Counter[str] = dataclasses.field(default_factory=Counter)
    names: Counter[str] = dataclasses.field(default_factory=Counter)
    special: int = 0


@runtime_checkable
class ImageSource(Protocol):
    """A place where images lie. Every implementation passes `tests/contracts/test_image_source.py`.

    An image that is gone and a source that cannot be reached are two different things. `stamp` and `is_there` say that
    an image is gone. Every method raises `SourceUnreachable` if the source cannot tell at the moment. A disk that is
    not mounted looks empty; `loop.intake.reach` tells it by the number of images that are gone at once.
    """

    @property
    def is_lasting(self) -> bool:
        """True if no image of this source can vanish or change, so that none has to be checked."""
        ...

    @property
    def outage(self) -> str:
        """Likely reason in words if many images are gone at once."""
        ...

    def full(self, name: str, folder: str) -> str:
        """Return the full form of a location, folder or pattern that a user wrote, relative to a local folder."""
        ...

    def expand(self, names: Sequence[str], skipped: Skipped) -> Iterator[str]:
        """Return the locations that names, as a user wrote them, lead to. Each location comes once.

        Args:
            names: Locations, folders or patterns.
            skipped: Counts the entries that are left out; complete when the iterator is exhausted.

        Raises:
            PoolError: A name leads to nothing; raised before anything is listed.
        """
        ...

    def find(self, name: str, folder: Path) -> str | None:
        """Return the location of the image that a table in a local folder means by a name; None if there is none."""
        ...

    def top(self, name: str) -> str:
        """Return the folder that a full name leads into: the folder before the first wildcard of a pattern."""
        ...

    def left_out(self, locations: Iterable[str], names: Iterable[str]) -> Mapping[str, str]:
        """Return the locations below these full names that `expand` does not return any more, with the reason."""
        ...

    def open(self, location: str) -> BufferedIOBase:
        """Open the bytes of an image for reading.

        Raises:
            FileNotFoundError: The image is gone.
            OSError: The image is there and cannot be read.
        """
        ...

    def fetch(self, location: str, max_bytes: int) -> Fetched:
        """Read all bytes at a location, unless they change meanwhile or are more than this number. Raise no OSError."""
        ...

    def stamp(self, location: str) -> Stamp | None:
        """Return the stamp of a location; None if nothing is there."""
        ...

    def is_there(self, location: str) -> bool:
        """Return whether an image or folder can be read."""
        ...

    def local_file(self, location: str) -> Path | None:
        """Return the file on this machine that holds the image, for programs that open files; None if there is none."""
        ...


def find_source(location: str) -> ImageSource:
    """Return the source of a location, or of a name that a user wrote.

    Raises:
        ConfigError: The source is another package's and cannot be used.
    """
    return _load(LOCAL if location.startswith("/") else scheme_of(location))


def scheme_of(location: str) -> str:
    """Return the scheme of a location; `file` if the location begins with no scheme of a source."""
    scheme, colon, _ = location.partition(":")
    if not colon or "/" in scheme:
        return LOCAL
    is_known = scheme in _loaded or scheme in SOURCES or scheme in _installed(tuple(sys.path))
    return scheme if is_known else LOCAL


@functools.cache
def _installed(path: tuple[str, ...]) -> frozenset[str]:
    """Return the schemes that packages on a module path add.

    Reading the metadata of all packages takes a tenth of a second, and a table may name thousands of files with colons.
    """
    return frozenset(list_installed(SOURCE_GROUP))


def _load(scheme: str) -> ImageSource:
    if scheme not in _loaded:
        _loaded[scheme] = _import(scheme)
    return _loaded[scheme]


def _import(scheme: str) -> ImageSource:
    way_out = "remove the images that it holds from [pool] images"
    source = load_named("image source", scheme, SOURCE_GROUP, SOURCES, way_out)
    if not isinstance(source, ImageSource):
        raise ConfigError(
            f"The image source {scheme} of another package lacks a part of alloop.pool.sources.ImageSource.",
            f"Ask its authors, or {way_out}.",
        )
    return source


def expand(names: Sequence[str], skipped: Skipped | None = None) -> Iterator[str]:
    """Return the locations that names, as a user wrote them, lead to. The arguments are those of `ImageSource.expand`.

    Raises:
        PoolError: A name leads to nothing; raised before anything is listed.
    """
    counted = Skipped() if skipped is None else skipped
    by_scheme = [(scheme, list(some)) for scheme, some in itertools.groupby(names, scheme_of)]
    return itertools.chain.from_iterable([_load(scheme).expand(some, counted) for scheme, some in by_scheme])


def full_name(name: str, folder: str) -> str:
    """Return the full form of a location, folder or pattern that a user wrote, relative to a local folder."""
    return find_source(name).full(name, folder)


def name_of(location: str) -> str:
    """Return the last part of a location, such as a file's name, without the scheme."""
    _, slash, name = location.rpartition("/")
    return name if slash else location.partition(":")[2] or location


def folder_of(location: str) -> str:
    """Return the location of the folder that holds an image or folder; the scheme alone at the top of a source."""
    folder, slash, _ = location.rpartition("/")
    if slash:
        return folder or slash
    scheme, colon, _ = location.partition(":")
    return scheme + colon if colon else ""


def fetch_image(location: str, max_pixels: int) -> Fetched:
    """Return the bytes of a file that may be an image of at most so many pixels; without bytes, the reason.

    A larger file than such an image can have is a video or a disk image, and is not read.
    """
    # Pixels of 4 channels with 32 bits, and room for metadata.
    found = find_source(location).fetch(location, max_pixels * 16 + 2**26)
    if found.data is not None or found.reason:
        return found
    reason = f"too large: {found.size} bytes, more than any image of {max_pixels} pixels has"
    return dataclasses.replace(found, reason=reason)


def read_bytes(location: str) -> bytes:
    """Read all bytes of an image.

    Raises:
        PoolError: The image is gone or unreadable.
    """
    try:
        with find_source(location).open(location) as file:
            return file.read()
    except FileNotFoundError as error:
        raise PoolError(f"{location} does not exist any more.", "Put it back, or run `alloop pool check`.") from error
    except OSError as error:
        raise PoolError(f"{location} cannot be read: {error.strerror or error}.", "Run `alloop pool check`.") from error


def content_hash(location: str) -> str:
    """Return the hex SHA-256 of an image's bytes, read in pieces.

    Raises:
        OSError: The image is gone or unreadable.
    """
    with find_source(location).open(location) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
