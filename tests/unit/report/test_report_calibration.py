"""Reliability diagrams: the numbers that are drawn, and that something is drawn."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alloop.report.calibration import (
    ReliabilityData,
    caption,
    draw_confidence,
    draw_reliability,
    reliability_bars,
)


def _data(**changes: object) -> ReliabilityData:
    # Of five bins two are filled: 4 images at a mean of 0.55, 2 of them right; 6 at 0.9, all right.
    values = {
        "title": "toy",
        "count": (0, 0, 4, 0, 6),
        "confidence": (None, None, 0.55, None, 0.9),
        "accuracy": (None, None, 0.5, None, 1.0),
    }
    return ReliabilityData(**{**values, **changes})


def test_ece_is_the_weighted_gap_between_accuracy_and_mean_confidence():
    # 4/10 * |0.5 - 0.55| + 6/10 * |1 - 0.9| = 0.02 + 0.06
    assert _data().ece == pytest.approx(0.08)
    assert _data().n == 10


def test_bars_stand_at_the_centers_and_gaps_go_to_the_mean_confidence():
    bars = reliability_bars(_data())

    assert [bar.center for bar in bars] == pytest.approx([0.5, 0.9])
    assert [bar.width for bar in bars] == pytest.approx([0.2, 0.2])
    assert [bar.accuracy.value for bar in bars] == [0.5, 1.0]
    assert [bar.confidence for bar in bars] == [0.55, 0.9]


def test_intervals_are_wilsons():
    half, whole = reliability_bars(_data())

    # Wilson with z² = 3.8415: 2 of 4 is 0.5 ± z sqrt(0.25/4 + z²/64) / (1 + z²/4); 6 of 6 goes down to 1 / (1 + z²/6).
    spread = math.sqrt(3.841459) * math.sqrt(0.25 / 4 + 3.841459 / 64) / (1 + 3.841459 / 4)
    assert (half.accuracy.low, half.accuracy.high) == pytest.approx((0.5 - spread, 0.5 + spread), abs=1e-6)
    assert (whole.accuracy.low, whole.accuracy.high) == pytest.approx((1 / (1 + 3.841459 / 6), 1.0), abs=1e-6)


def test_the_caption_says_ece_and_n_and_the_interval_where_it_is_known():
    assert caption(_data()) == "toy\nECE 8.0 %, N = 10"
    assert caption(_data(ece_interval=(0.02, 0.3))) == "toy\nECE 8.0 % [2.0, 30.0], N = 10"


def test_nothing_to_measure_is_drawn_empty(tmp_path: Path):
    nothing = _data(count=(0,) * 5, confidence=(None,) * 5, accuracy=(None,) * 5)

    draw_reliability([nothing], tmp_path / "empty.png")

    assert math.isnan(nothing.ece)
    assert reliability_bars(nothing) == []
    assert (tmp_path / "empty.png").stat().st_size > 0


@pytest.mark.parametrize("draw", [draw_reliability, draw_confidence])
def test_two_panels_are_one_wider_picture(draw, tmp_path: Path):
    draw([_data()], tmp_path / "one.png")
    draw([_data(), _data(title="after")], tmp_path / "two.png")

    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width == 2 * one.width
        assert len(np.unique(np.asarray(one.convert("L")))) > 10
