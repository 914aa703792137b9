"""Metrics against third-party values, also where values lie exactly on bin edges."""

import math
from pathlib import Path

import numpy as np
import pytest

from alloop.evaluation import metrics
from alloop.evaluation.intervals import statistics_of

ASSETS = Path(__file__).parents[2] / "assets" / "golden"
SMOOTH = ["metrics_binary", "metrics_c10", "metrics_c100"]
EDGES = ["metrics_edges_binary", "metrics_edges_c10"]


def _measured(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The measures that intervals are made for, on the images as they are."""
    with np.errstate(divide="ignore"):
        statistics = statistics_of(np.log(probs), labels)
    return {name: float(statistic(np.ones((1, len(labels))))[0]) for name, statistic in statistics.items()}


def _load(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(ASSETS / f"{name}.npz"))


@pytest.mark.parametrize("name", SMOOTH + EDGES)
def test_accuracy_brier_and_calibration_errors_agree_with_other_libraries(name):
    golden = _load(name)
    probs, labels = golden["probs"], golden["labels"]

    assert metrics.accuracy(probs, labels) == float(golden["accuracy"])
    measured = _measured(probs, labels)
    assert measured["brier"] == pytest.approx(float(golden["brier_sum"]), abs=1e-12)
    assert measured["ece"] == pytest.approx(float(golden["ece15_right_closed"]), abs=1e-12)
    assert measured["mce"] == pytest.approx(float(golden["mce15_right_closed"]), abs=1e-12)
    assert measured["adaptive_ece"] == pytest.approx(float(golden["adaptive_ece15"]), abs=1e-12)
    assert measured["classwise_ece"] == pytest.approx(float(golden["classwise_ece15"]), abs=1e-12)


@pytest.mark.parametrize("name", SMOOTH + EDGES)
def test_every_bin_of_the_diagram_agrees(name):
    golden = _load(name)

    bins = metrics.confidence_bins(golden["probs"], golden["labels"])

    np.testing.assert_array_equal(bins.count, golden["bin_count"])
    np.testing.assert_allclose(bins.confidence, golden["bin_conf"], atol=1e-12)
    np.testing.assert_allclose(bins.accuracy, golden["bin_acc"], atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_nll_agrees_with_pytorchs(name):
    golden = _load(name)
    logits = golden["logits"]
    log_probs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    log_probs -= logits.max(1, keepdims=True)

    assert metrics.nll_per_image(log_probs, golden["labels"]).mean() == pytest.approx(float(golden["nll"]), abs=1e-10)


@pytest.mark.parametrize("name", EDGES)
def test_a_sure_mistake_makes_the_nll_infinite(name):
    golden = _load(name)

    assert _measured(golden["probs"], golden["labels"])["nll"] == math.inf


def test_a_tie_counts_for_the_lowest_position():
    assert metrics.accuracy(np.array([[0.4, 0.4, 0.2]]), np.array([0])) == 1


def test_no_images_have_no_accuracy():
    assert math.isnan(metrics.accuracy(np.empty((0, 3)), np.empty(0, dtype=np.int64)))


def test_one_image_has_an_adaptive_calibration_error():
    assert _measured(np.array([[0.75, 0.25]]), np.array([0]))["adaptive_ece"] == pytest.approx(0.25)


def test_inputs_stay_as_they_were():
    probs, labels = np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([0, 1])
    before = probs.copy(), labels.copy()

    _measured(probs, labels)
    metrics.confidence_bins(probs, labels)

    np.testing.assert_array_equal(probs, before[0])
    np.testing.assert_array_equal(labels, before[1])
