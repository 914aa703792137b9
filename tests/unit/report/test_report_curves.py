"""Learning curves as pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alloop.errors import WorkspaceError
from alloop.records import CurvePoint, Interval
from alloop.report.curves import draw_curves


def curve(*accuracies: float, n: int = 50) -> list[CurvePoint]:
    return [
        CurvePoint(20 * place, Interval(value, value - 0.1, value + 0.05, n, "wilson 95%"))
        for place, value in enumerate(accuracies, start=1)
    ]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_a_picture_shows_one_colored_line_per_curve(tmp_path: Path):
    draw_curves({"entropy": curve(0.5, 0.7, 0.8), "random": curve(0.5, 0.6, 0.7)}, "two", tmp_path / "two.png")
    draw_curves({"entropy": curve(0.5, 0.7, 0.8)}, "one", tmp_path / "one.png")

    both, one = pixels(tmp_path / "two.png"), pixels(tmp_path / "one.png")
    assert both.shape == one.shape == (540, 900, 3)
    blue, orange = (31, 119, 180), (255, 127, 14)  # matplotlib's first two colors
    assert (both == blue).all(axis=2).sum() > 200
    assert (both == orange).all(axis=2).sum() > 200
    assert (one == orange).all(axis=2).sum() == 0


def test_a_point_without_uncertainty_and_a_curve_of_one_point_can_be_drawn(tmp_path: Path):
    point = CurvePoint(10, Interval(1.0, 1.0 + 1e-12, 1.0 - 1e-12, 3, "wilson 95%"))

    draw_curves({"entropy": [point]}, "one point", tmp_path / "a.png")

    assert pixels(tmp_path / "a.png").std() > 0


def test_no_rounds_yet_is_a_picture_too(tmp_path: Path):
    draw_curves({"entropy": [], "random": []}, "nothing yet", tmp_path / "a.png")

    assert pixels(tmp_path / "a.png").shape == (540, 900, 3)


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path):
    (tmp_path / "file").write_text("mine")

    with pytest.raises(WorkspaceError):
        draw_curves({"entropy": curve(0.5)}, "x", tmp_path / "file" / "a.png")

    assert (tmp_path / "file").read_text() == "mine"
