"""Pictures of accuracy against the number of labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from alloop.files import atomic_path
from alloop.records import CurvePoint


def draw_curves(curves: Mapping[str, Sequence[CurvePoint]], title: str, path: Path) -> None:
    """Draw one line per name with its 95 % intervals, as PNG.

    Args:
        curves: Name → points by number of labels.
        title: Title of the picture.
        path: File to write.
    """
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for shift, (name, points) in enumerate(curves.items()):
        # Intervals of two arms at the same number of labels would hide each other.
        x = [point.n_labels + 1.5 * shift for point in points]
        y = [point.accuracy.value for point in points]
        # By rounding, the end of an interval can lie slightly on the wrong side of a value of 0 or 1.
        below = [max(0.0, point.accuracy.value - point.accuracy.low) for point in points]
        above = [max(0.0, point.accuracy.high - point.accuracy.value) for point in points]
        axes.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, label=name)
    axes.set_title(title)
    axes.set_xlabel("labels to train on")
    axes.set_ylabel(f"holdout accuracy ({_sizes(curves)}95 % Wilson interval)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _sizes(curves: Mapping[str, Sequence[CurvePoint]]) -> str:
    """Return the number of images behind the points in words: `N = 200, `, a range, or nothing without points."""
    sizes = {point.accuracy.n for points in curves.values() for point in points}
    return f"N = {' to '.join(map(str, sorted({min(sizes), max(sizes)})))}, " if sizes else ""


@dataclasses.dataclass(frozen=True)
class Band:
    """Mean curve: accuracy and standard deviation over seeds at each budget."""

    name: str
    mean: Sequence[float]
    std: Sequence[float]


def draw_bands(budgets: Sequence[int], bands: Sequence[Band], title: str, path: Path) -> None:
    """Draw one line per strategy, with a band of one standard deviation, as PNG."""
    figure = Figure(figsize=(9.0, 5.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, band in enumerate(bands):
        # There are ten colors; further strategies have another line style.
        color, line = f"C{number % 10}", ("-", "--", ":", "-.")[number // 10 % 4]
        axes.plot(budgets, band.mean, color=color, linestyle=line, marker="o", markersize=3, label=band.name)
        low = [mean - std for mean, std in zip(band.mean, band.std, strict=True)]
        high = [mean + std for mean, std in zip(band.mean, band.std, strict=True)]
        axes.fill_between(budgets, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_title(title)
    axes.set_xlabel("labels to train on")
    axes.set_ylabel("accuracy (band: one standard deviation over seeds)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right", ncols=1 + (len(bands) > 8), fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
