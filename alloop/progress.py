"""How long work tells where it is, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on. `total` may be 0 when it is not known yet; `done == total` ends the phase `label`."""

    def __call__(self, label: str, done: int, total: int) -> None: ...


def silent(label: str, done: int, total: int) -> None:
    """Nobody listens."""
