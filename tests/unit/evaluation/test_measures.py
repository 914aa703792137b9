"""The metrics of a classification by name."""

import numpy as np
import pytest

from alloop.composition import CLASSIFICATION
from alloop.evaluation.measures import TASKS

MEASURES = TASKS[CLASSIFICATION]
LOG_PROBS = np.log([[0.5, 0.5], [0.25, 0.75], [0.75, 0.25], [0.5, 0.5]])
TARGETS = np.array([0, 1, 1, 0])


def test_the_primary_metric_is_the_share_of_images_that_are_right():
    measured = MEASURES.measure(LOG_PROBS, TARGETS, np.random.default_rng(0))

    assert MEASURES.correct(LOG_PROBS, TARGETS).tolist() == [True, True, False, True]
    assert MEASURES.primary == "accuracy"
    assert (measured["accuracy"].value, measured["accuracy"].n) == (0.75, 4)
    assert measured["accuracy"].method.startswith("wilson")


def test_every_metric_is_there_and_the_one_before_calibration_only_if_it_is_known():
    calibrated = MEASURES.measure(LOG_PROBS, TARGETS, np.random.default_rng(0))
    both = MEASURES.measure(LOG_PROBS, TARGETS, np.random.default_rng(0), pooled_log_probs=2 * LOG_PROBS)

    assert set(calibrated) == {"accuracy", "nll", "brier", "ece", "mce", "adaptive_ece", "classwise_ece"}
    assert set(both) - set(calibrated) == {"nll_uncalibrated", "ece_uncalibrated"}
    assert calibrated["nll"].value == pytest.approx(-np.log(0.5 * 0.75 * 0.25 * 0.5) / 4)
    assert both["nll_uncalibrated"].value == pytest.approx(2 * calibrated["nll"].value)
    assert all(both[name] == interval for name, interval in calibrated.items())
