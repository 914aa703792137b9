"""Errors that a user can do something about.

    AlloopError                 exit 1   all of the following; a message and a hint
    ├── ConfigError             exit 2   alloop.toml, an environment override or a flag
    │   └── HistoryError        exit 2   a setting changed in a way that would invalidate earlier rounds
    ├── WorkspaceError          exit 1   the folder: missing, read-only, not a workspace, disk full
    ├── DatabaseError           exit 1   the database: too old, too new, not reachable
    ├── PoolError               exit 1   no images, or no image left to ask about
    ├── LabelError              exit 1   labels that cannot be used: unknown class, too few
    ├── ModelError              exit 1   backbone, weights, a model or cache file that is damaged
    ├── DeviceError             exit 1   the device has too little memory
    ├── WorkerKilled            exit 1   a process that worked on a job was killed
    ├── LabelingError           exit 1   the labeling back end refused: wrong token, project gone, other label config
    └── TemporaryError          exit 75  try again later
        ├── ServerUnavailable            the labeling server is down, slow or gives invalid answers
        ├── SourceUnreachable            a large part of the pool is missing: its disk may not be mounted
        └── LeaseHeld                    another alloop is writing to this workspace

Bugs do not belong to this tree; they keep their traceback.
"""

from collections.abc import Iterable

KEPT = "Nothing that was recorded is lost."  # also true of work that ended before it recorded anything


class AlloopError(Exception):
    """Problem that a user can solve.

    Args:
        message: Description of the problem, with place and numbers. Never holds a secret.
        hint: Next step for the user, one sentence; empty if the message is enough.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(AlloopError):
    exit_code = 2


class HistoryError(ConfigError):
    pass


class WorkspaceError(AlloopError):
    pass


class DatabaseError(AlloopError):
    pass


class PoolError(AlloopError):
    pass


class LabelError(AlloopError):
    pass


class ModelError(AlloopError):
    pass


class DeviceError(AlloopError):
    pass


class WorkerKilled(AlloopError):
    pass


class LabelingError(AlloopError):
    pass


class TemporaryError(AlloopError):
    exit_code = 75


class ServerUnavailable(TemporaryError):
    pass


class SourceUnreachable(TemporaryError):
    pass


class LeaseHeld(TemporaryError):
    pass


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the nearest known name, if any is near: cat for Cat, 001 for 1 (Excel removes the zeros)."""
    import difflib  # here, because every command imports this file, and few find a mistake

    names = list(known)
    for plain in (str.casefold, _as_number):
        same = [other for other in names if plain(other) == plain(name)]
        if same:
            return same[0]
    folded = {other.casefold(): other for other in reversed(names)}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return folded[close[0]] if close else None


def _as_number(text: str) -> str:
    """Write a number as spreadsheet programs save it: without leading and trailing zeros. Other text stays as it is."""
    whole, _, rest = text.strip().partition(".")
    is_number = whole.isdecimal() and (not rest or rest.isdecimal())
    return f"{whole.lstrip('0')}.{rest.rstrip('0')}" if is_number else text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known name, or all of them if none is near."""
    names = list(known)
    if (close := nearest(name, names)) is not None:
        return f"; did you mean '{close}'?"
    return f"; there are: {', '.join(names)}." if names else "; there are none."
