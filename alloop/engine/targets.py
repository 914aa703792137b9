"""Targets: labels in the form that the engine trains on. One coding for each task. Names and arrays, no tensors."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from alloop.composition import CLASSIFICATION

Target = int


class Coding(Protocol):
    """Translation between labels, targets and predictions of one task, for the classes of one model."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the model's outputs [K]."""
        ...

    def encode(self, value: str) -> Target | None:
        """Return the target for a label; None if the model cannot learn from it."""
        ...

    def decode(self, target: Target) -> str:
        """Return the label for a target."""
        ...

    def guess(self, calibrated_log_probs: npt.NDArray[np.floating]) -> npt.NDArray[np.object_]:
        """Return the labels [N] that predictions [N, K] amount to."""
        ...

    def array(self, targets: Sequence[Target]) -> npt.NDArray[np.int64]:
        """Return targets as losses and measures take them [N]."""
        ...

    def is_target(self, target: Target) -> bool:
        """Return whether this is a target for the model."""
        ...

    def shortage(self, targets: Sequence[Target]) -> str:
        """Return a sentence that says why these targets are not enough to train on; empty if they are."""
        ...


class ClassificationCoding:
    """Coding of a classification: a target is the position of a class, a guess the most probable class."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self._positions = {name: position for position, name in enumerate(classes)}
        self._names = np.array(self._classes, dtype=object)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    def encode(self, value: str) -> Target | None:
        return self._positions.get(value)

    def decode(self, target: Target) -> str:
        return self._classes[target]

    def guess(self, calibrated_log_probs: npt.NDArray[np.floating]) -> npt.NDArray[np.object_]:
        return np.asarray(self._names[calibrated_log_probs.argmax(axis=1)])

    def array(self, targets: Sequence[Target]) -> npt.NDArray[np.int64]:
        return np.array(targets, dtype=np.int64)

    def is_target(self, target: Target) -> bool:
        return 0 <= target < len(self._classes)

    def shortage(self, targets: Sequence[Target]) -> str:
        counts = collections.Counter(targets)
        if len(counts) >= 2:
            return ""
        found = ", ".join(f"{n} of {self.decode(target)}" for target, n in counts.items())
        return f"Training needs labels of at least two classes, but there are {found or 'none'}."


TASKS: Mapping[str, Callable[[Sequence[str]], Coding]] = {CLASSIFICATION: ClassificationCoding}


def encode_known(coding: Coding, values: Sequence[str]) -> tuple[Target, ...]:
    """Return the targets of labels that the model can learn from.

    Raises:
        ValueError: It cannot learn from one of them.
    """
    targets = [coding.encode(value) for value in values]
    if None in targets:
        raise ValueError(f"{values[targets.index(None)]!r} is not a label of this model")
    return tuple(target for target in targets if target is not None)
