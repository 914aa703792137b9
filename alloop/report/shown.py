"""The port for tasks in this room: predictions and metrics in words and tables."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from alloop.composition import CLASSIFICATION
from alloop.engine import targets
from alloop.evaluation.metrics import Bins, confidence_bins
from alloop.loop.measuring.holdout_file import HoldoutPredictions


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """Column of a metric in tables of rounds.

    Attributes:
        name: Name of the metric.
        title: Title of the column.
        factor: Factor of the shown number.
        digits: Number of digits after the point.
    """

    name: str
    title: str
    factor: float
    digits: int


class Shown(Protocol):
    """View of one task for people.

    Attributes:
        metrics: Columns of metrics, the primary metric first.
        explained: Explanation of the metrics, with `{measured}` for the images that they are of.
        heads: Titles of the table of a prediction.
    """

    @property
    def metrics(self) -> Sequence[Column]: ...

    @property
    def explained(self) -> str: ...

    @property
    def heads(self) -> tuple[str, str]: ...

    def prediction(self, probs: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return the parts of a prediction with their probability in words, the most important first.

        Args:
            probs: Class → calibrated probability, the highest first.
        """
        ...

    def entropy(self, certainty: float, n_classes: int) -> float:
        """Return the entropy in nats of a prediction with this certainty; the inverse of `RowRule.certainty`."""
        ...

    def reliability(self, holdout: HoldoutPredictions, *, is_calibrated: bool = True) -> Bins | None:
        """Return the reliability diagram of the first holdout, after calibration or before it.

        None without such probabilities, or without images.
        """
        ...


class ClassificationShown:
    """A classification: the probability of each class, and how often the top class is right."""

    metrics = (Column("accuracy", "accuracy %", 100, 1), Column("nll", "NLL", 1, 2), Column("ece", "ECE %", 100, 1))
    explained = (
        "Accuracy, NLL (nats) and ECE are measured {measured}. "
        "Intervals are 95 % (accuracy: Wilson, others: bootstrap). ECE is biased upwards when the holdout is small, so "
        "its interval may lie above it."
    )
    heads = ("class", "probability")

    def prediction(self, probs: Mapping[str, float]) -> list[tuple[str, str]]:
        return [(name, f"{share:.1%}") for name, share in probs.items()]

    def entropy(self, certainty: float, n_classes: int) -> float:
        return (1 - certainty) * math.log(n_classes)

    def reliability(self, holdout: HoldoutPredictions, *, is_calibrated: bool = True) -> Bins | None:
        log_probs = holdout.calibrated_log_probs if is_calibrated else holdout.plain_log_probs
        if log_probs is None or not (kept := ~holdout.grown).any():
            return None
        coding = targets.ClassificationCoding(holdout.classes)
        labels = coding.array(targets.encode_known(coding, holdout.targets))
        return confidence_bins(np.exp(log_probs[kept].astype(np.float64)), labels[kept])


TASKS: Mapping[str, Shown] = {CLASSIFICATION: ClassificationShown()}
