"""Geometry of histograms: from numbers to bars in an SVG picture. The templates draw them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LEFT, RIGHT, TOP, BOTTOM = 44, 404, 16, 156  # edges of the bars, in pixels
N_BINS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class HistogramBar:
    """Bin of a histogram: a bar of two parts, the second one on top of the first.

    Attributes:
        x, width: Place in pixels.
        y, height: Place of the first part.
        top, above: Place and height of the second part.
        span: Values of the bin in words.
        first, second: Numbers of images.
    """

    x: float
    width: float
    y: float
    height: float
    top: float
    above: float
    span: str
    first: int
    second: int


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """Bars with the numbers at the ends of both axes."""

    bars: tuple[HistogramBar, ...]
    low: str
    high: str
    most: int


def make_histogram(
    edges: Sequence[float], first: Sequence[int], second: Sequence[int], form: str = "{:.3g}"
) -> Histogram | None:
    """Return the geometry of a histogram; None if it counts nothing.

    Args:
        edges: Edges of the bins [B + 1], ascending.
        first: Numbers of the lower parts of the bars [B].
        second: Numbers of the upper parts [B].
        form: Format of an edge in words.
    """
    most = max((one + other for one, other in zip(first, second, strict=True)), default=0)
    if not most:
        return None
    scale, span = (BOTTOM - TOP) / most, (edges[-1] - edges[0]) or 1.0
    bars = []
    for at, (one, other) in enumerate(zip(first, second, strict=True)):
        x = LEFT + (RIGHT - LEFT) * (edges[at] - edges[0]) / span
        width = (RIGHT - LEFT) * (edges[at + 1] - edges[at]) / span
        y, top = BOTTOM - one * scale, BOTTOM - (one + other) * scale
        words = f"{_number(edges[at], form)} to {_number(edges[at + 1], form)}"
        bars.append(
            HistogramBar(
                round(x + 1, 1),
                round(max(1.0, width - 2), 1),
                round(y, 1),
                round(one * scale, 1),
                round(top, 1),
                round(other * scale, 1),
                words,
                one,
                other,
            )
        )
    return Histogram(tuple(bars), _number(edges[0], form), _number(edges[-1], form), most)


def _number(edge: float, form: str) -> str:
    return form.format(edge).replace("-", "−")


def histogram_of(values: npt.NDArray[np.floating], is_second: npt.NDArray[np.bool_]) -> Histogram | None:
    """Return the histogram of finite values [N] in `N_BINS` bins; None without values.

    Args:
        values: Values [N]; those that are not finite are left out.
        is_second: True for values that belong to the upper parts of the bars [N].
    """
    known = np.isfinite(values)
    if not known.any():
        return None
    edges = np.histogram_bin_edges(values[known], N_BINS)
    first, _ = np.histogram(values[known & ~is_second], edges)
    second, _ = np.histogram(values[known & is_second], edges)
    return make_histogram(edges.tolist(), first.tolist(), second.tolist())
