"""Images placed in a folder for other programs: as links to the pool's files, or as copies."""

import shutil
from pathlib import Path, PurePosixPath

from alloop.errors import PoolError
from alloop.names import LONGEST
from alloop.pool.sources import find_source, name_of


def placed_name(location: str, digits: str) -> str:
    """Return a file name of at most 255 bytes that holds these digits of the content hash.

    Equal names of two folders differ in this way. A hidden file's name begins with `_`, because readers pass over
    hidden files.
    """
    name = PurePosixPath(name_of(location))
    end = f"-{digits}{name.suffix}"
    stem = f"_{name.stem[1:]}" if name.stem.startswith(".") else name.stem
    return stem.encode()[: LONGEST - len(end.encode())].decode(errors="ignore") + end


def place_image(location: str, place: Path, *, copy: bool) -> None:
    """Link an image or copy it. A link leads to the absolute path, so it works across disks.

    An image that is not a file of this machine is copied.

    Raises:
        PoolError: The image cannot be read.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    source = find_source(location)
    original = source.local_file(location)
    if original is not None and not copy:
        place.symlink_to(original)
        return
    try:
        opened = source.open(location)
    except OSError as error:
        raise PoolError(f"{location} cannot be read: {error.strerror}.", "Nothing was written.") from error
    with opened, place.open("xb") as copied:
        shutil.copyfileobj(opened, copied)
    if original is not None:
        shutil.copystat(original, place)
