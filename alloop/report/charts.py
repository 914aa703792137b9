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
    """Learning curve with its band of intervals, and the random arm beside it.

    Attributes:
        line, band: Points of SVG polylines, "x,y x,y …".
        end: The last point, with the words beside it.
        random: Points of models that learned from random labels only; empty if there are none.
        random_line: These as an SVG polyline.
        random_end: The last of these; None without any.
        summary: The chart in words.
    """

    dots: tuple[Dot, ...]
    line: str
    band: str
    end: Dot
    random: tuple[Dot, ...]
    random_line: str
    random_end: Dot | None
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]
    summary: str


def make_curve(points: Sequence[CurvePoint], random: Sequence[CurvePoint] = ()) -> CurveChart | None:
    """Return the geometry of accuracy by labels, in percent; None without a point.

    Args:
        points: Models of the rounds.
        random: Random arms of the rounds: models that learned from as many random labels as are there.
    """
    if not points:
        return None
    lows, highs = [100 * point.accuracy.low for point in points], [100 * point.accuracy.high for point in points]
    values = [100 * point.accuracy.value for point in random]
    step, first = _grid(min(lows + values), max(highs + values))
    last = first + step * (N_LINES - 1)
    counts = [point.n_labels for point in points]
    fewest = min([*counts, *(point.n_labels for point in random)])

    def x(n: float) -> float:
        span = counts[-1] - fewest
        share = (n - fewest) / span if span else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(percent: float) -> float:
        return round(HEIGHT - BOTTOM - (percent - first) / (last - first) * (HEIGHT - TOP - BOTTOM), 1)

    def dot(point: CurvePoint, words: str) -> Dot:
        said = f"{point.n_labels} {words}: {interval_of(point.accuracy)} %"
        return Dot(x(point.n_labels), y(100 * point.accuracy.value), said)

    dots = tuple(dot(point, "labels") for point in points)
    others = tuple(dot(point, "random labels") for point in random)
    upper = [f"{x(n)},{y(high)}" for n, high in zip(counts, highs, strict=True)]
    lower = [f"{x(n)},{y(low)}" for n, low in zip(counts, lows, strict=True)]
    return CurveChart(
        dots=dots,
        line=_line(dots),
        band=" ".join(upper + lower[::-1]),
        end=Dot(dots[-1].x, dots[-1].y, f"{100 * points[-1].accuracy.value:.1f} % asked"),
        random=others,
        random_line=_line(others),
        random_end=Dot(others[-1].x, others[-1].y, f"{values[-1]:.1f} % random") if others else None,
        rows=tuple(Tick(y(first + step * at), f"{first + step * at:g}") for at in range(N_LINES)),
        columns=tuple(Tick(x(n), str(n)) for n in _some(counts)),
        summary=f"Accuracy goes from {interval_of(points[0].accuracy)} % with {counts[0]} labels to "
        f"{interval_of(points[-1].accuracy)} % with {counts[-1]} labels."
        + (f" {random[-1].n_labels} random labels alone give {interval_of(random[-1].accuracy)} %." if random else ""),
    )


def _line(dots: Sequence[Dot]) -> str:
    return " ".join(f"{dot.x},{dot.y}" for dot in dots)


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
