"""An image source of another package: images in the memory of this process, as `mem:folder/name`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path

from alloop.errors import PoolError, SourceUnreachable
from alloop.pool.sources import Fetched, Skipped, Stamp

IMAGES: dict[str, tuple[bytes, int]] = {}  # location → bytes and time of the last change
OFFLINE: list[str] = []  # the reason while the source cannot be reached


def put(location: str, data: bytes, moment: int = 1) -> None:
    IMAGES[location] = data, moment


class Memory:
    is_lasting = False
    outage = "the memory may have been cleared"

    def full(self, name: str, folder: str) -> str:
        return name

    def expand(self, names: Sequence[str], skipped: Skipped) -> Iterator[str]:
        found = [location for name in names for location in sorted(self._held()) if _is_below(location, name)]
        if not found:
            raise PoolError(f"{names[0]} leads to nothing.")
        return iter(dict.fromkeys(found))

    def find(self, name: str, folder: Path) -> str | None:
        return name if name in self._held() else None

    def top(self, name: str) -> str:
        return name

    def left_out(self, locations: Iterable[str], names: Iterable[str]) -> Mapping[str, str]:
        return {}

    def open(self, location: str) -> BytesIO:
        if location not in self._held():
            raise FileNotFoundError(location)
        return BytesIO(IMAGES[location][0])

    def fetch(self, location: str, max_bytes: int) -> Fetched:
        data, moment = self._held().get(location, (None, 0))
        if data is None:
            return Fetched(0, 0, reason="it does not exist (any more)")
        return Fetched(len(data), moment, data if len(data) <= max_bytes else None)

    def stamp(self, location: str) -> Stamp | None:
        if location not in self._held():
            return None
        data, moment = IMAGES[location]
        return Stamp(len(data), moment, float(moment))

    def is_there(self, location: str) -> bool:
        return any(_is_below(held, location) for held in self._held())

    def local_file(self, location: str) -> Path | None:
        return None

    def _held(self) -> dict[str, tuple[bytes, int]]:
        if OFFLINE:
            raise SourceUnreachable(f"The memory cannot be reached: {OFFLINE[0]}.", "Try again later.")
        return IMAGES


def _is_below(location: str, name: str) -> bool:
    return location == name or location.startswith(name if name.endswith(":") else f"{name}/")


MEMORY = Memory()
