"""Geometry of the charts: from numbers to places in an SVG picture. The templates draw them."""

import dataclasses
import math
from collections.abc import Sequence

from alloop.records import CurvePoint
from alloop.report.headlines import interval_of

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 96, 12, 34  # margins; the right one holds the name of the line
N_LINES = 5  # horizontal lines of the grid


@dataclasses.dataclass(frozen=True, slots=True)
class Tick:
    """Line of the grid or number of an axis: its place in pixels, and its words."""

    place: float
    words: str


@dataclasses.dataclass(frozen=True, slots=True)
class Dot:
    """Measured point: its place in pixels, and its row of the table in words."""

    x: float
    y: float
    words: str


@dataclasses.dataclass(frozen=True, slots=True)
class CurveChart:
    """Learning curve with its band of intervals.

    Attributes:
        line, band: Points of SVG polylines, "x,y x,y …".
        end: The last point, with the words beside it.
        summary: The chart in one sentence.
    """

    dots: tuple[Dot, ...]
    line: str
    band: str
    end: Dot
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]
    summary: str


def make_curve(points: Sequence[CurvePoint]) -> CurveChart | None:
    """Return the geometry of accuracy by labels, in percent; None without a point."""
    if not points:
        return None
    lows, highs = [100 * point.accuracy.low for point in points], [100 * point.accuracy.high for point in points]
    step, first = _grid(min(lows), max(highs))
    last = first + step * (N_LINES - 1)
    counts = [point.n_labels for point in points]

    def x(n: float) -> float:
        span = counts[-1] - counts[0]
        share = (n - counts[0]) / span if span else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(percent: float) -> float:
        return round(HEIGHT - BOTTOM - (percent - first) / (last - first) * (HEIGHT - TOP - BOTTOM), 1)

    dots = tuple(
        Dot(
            x(point.n_labels),
            y(100 * point.accuracy.value),
            f"{point.n_labels} labels: {interval_of(point.accuracy)} %",
        )
        for point in points
    )
    upper = [f"{x(n)},{y(high)}" for n, high in zip(counts, highs, strict=True)]
    lower = [f"{x(n)},{y(low)}" for n, low in zip(counts, lows, strict=True)]
    return CurveChart(
        dots=dots,
        line=" ".join(f"{dot.x},{dot.y}" for dot in dots),
        band=" ".join(upper + lower[::-1]),
        end=Dot(dots[-1].x, dots[-1].y, f"{100 * points[-1].accuracy.value:.1f} % asked"),
        rows=tuple(Tick(y(first + step * at), f"{first + step * at:g}") for at in range(N_LINES)),
        columns=tuple(Tick(x(n), str(n)) for n in _some(counts)),
        summary=f"Accuracy goes from {interval_of(points[0].accuracy)} % with {counts[0]} labels to "
        f"{interval_of(points[-1].accuracy)} % with {counts[-1]} labels.",
    )


def _grid(low: float, high: float) -> tuple[float, float]:
    """Return step and first value of a grid of `N_LINES` round numbers around the values."""
    for step in (1, 2, 5, 10, 15, 20, 25):
        first = math.floor(low / step) * step
        if first + step * (N_LINES - 1) >= high:
            return float(step), float(min(first, 100 - step * (N_LINES - 1)) if high <= 100 else first)
    return 25.0, 0.0


def _some(values: Sequence[int], most: int = 8) -> list[int]:
    """Return at most `most` of the values, with the last one."""
    every = max(1, math.ceil(len(values) / most))
    return [value for at, value in enumerate(values) if (len(values) - 1 - at) % every == 0]
