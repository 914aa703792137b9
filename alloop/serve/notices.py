"""Notices about what an action did, for the next page that the same browser shows."""

import collections
import dataclasses
import threading
from collections.abc import Sequence

MOST = 1000  # browsers with a notice that was not shown yet


@dataclasses.dataclass(frozen=True, slots=True)
class Button:
    """Button of a notice: a form that sends these images to an action."""

    words: str
    action: str
    images: Sequence[int] = ()

    @property
    def ids(self) -> str:
        """Value of the form's field."""
        return ",".join(map(str, self.images))


@dataclasses.dataclass(frozen=True, slots=True)
class Notice:
    """Sentences about an action, and buttons for what may follow."""

    lines: Sequence[str]
    buttons: Sequence[Button] = ()
    is_bad: bool = False


class Notices:
    """Notices by session; each is shown once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: collections.OrderedDict[str, Notice] = collections.OrderedDict()

    def put(self, session: str, notice: Notice) -> None:
        """Keep a notice for the next page; it replaces one that was not shown."""
        with self._lock:
            self._waiting[session] = notice
            self._waiting.move_to_end(session)
            while len(self._waiting) > MOST:
                self._waiting.popitem(last=False)

    def take(self, session: str) -> Notice | None:
        """Return the notice of a session, once."""
        with self._lock:
            return self._waiting.pop(session, None)
