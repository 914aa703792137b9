"""Measures of predictions on labeled images. One set of measures for each task."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from alloop.composition import CLASSIFICATION
from alloop.evaluation.intervals import bootstrap_all, ece_of, mean_of, statistics_of, wilson
from alloop.evaluation.metrics import Array, accuracy, nll_per_image
from alloop.records import Interval

Labels = npt.NDArray[np.int64]


class Measures(Protocol):
    """Measures of one task.

    Attributes:
        primary: Name of the metric that learning curves, stop rules and `alloop status` show. It is a share of images.
    """

    @property
    def primary(self) -> str: ...

    def correct(self, calibrated_log_probs: Array, targets: Labels) -> npt.NDArray[np.bool_]:
        """Return whether each image is predicted right [N]."""
        ...

    def measure(
        self,
        calibrated_log_probs: Array,
        targets: Labels,
        generator: np.random.Generator,
        pooled_log_probs: Array | None = None,
    ) -> dict[str, Interval]:
        """Return the metrics with 95 % intervals, the primary one among them.

        Args:
            calibrated_log_probs: Log p̄ [N, K] of images that took no part in training or calibration.
            targets: [N].
            generator: Draws the resamples of images.
            pooled_log_probs: Log p̄ before calibration; adds its NLL and ECE as `nll_uncalibrated` and
                `ece_uncalibrated`.
        """
        ...


class ClassificationMeasures:
    """Measures of a classification.

    Accuracy has Wilson's interval; NLL in nats, the Brier score and the calibration errors have bootstrap intervals.
    The calibration errors have 15 bins: of the top class expected (`ece`), greatest (`mce`) and over bins with equally
    many images (`adaptive_ece`), and the mean over all classes (`classwise_ece`).
    """

    primary = "accuracy"

    def correct(self, calibrated_log_probs: Array, targets: Labels) -> npt.NDArray[np.bool_]:
        return np.asarray(calibrated_log_probs.argmax(axis=1) == targets)

    def measure(
        self,
        calibrated_log_probs: Array,
        targets: Labels,
        generator: np.random.Generator,
        pooled_log_probs: Array | None = None,
    ) -> dict[str, Interval]:
        n = len(targets)
        probs = np.exp(calibrated_log_probs.astype(np.float64))
        statistics = statistics_of(calibrated_log_probs, targets)
        if pooled_log_probs is not None:
            statistics["nll_uncalibrated"] = mean_of(nll_per_image(pooled_log_probs, targets))
            statistics["ece_uncalibrated"] = ece_of(np.exp(pooled_log_probs.astype(np.float64)), targets)
        # All from the same resamples, so that numbers before and after calibration can be compared.
        intervals = bootstrap_all(statistics, n, generator)
        return {self.primary: wilson(round(accuracy(probs, targets) * n), n), **intervals}


TASKS: Mapping[str, Measures] = {CLASSIFICATION: ClassificationMeasures()}
