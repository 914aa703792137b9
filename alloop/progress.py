"""Reports of progress, independent of their receiver."""

from typing import Protocol


class Progress(Protocol):
    """Function that receives progress. `total` is 0 if it is not known yet; `done == total` ends the phase `label`."""

    def __call__(self, label: str, done: int, total: int) -> None: ...


def silent(label: str, done: int, total: int) -> None:
    """Ignore the progress."""
