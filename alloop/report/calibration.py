"""Reliability diagrams and confidence histograms, drawn from plain numbers."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alloop.evaluation.intervals import wilson
from alloop.files import atomic_path
from alloop.records import Interval

_BLUE, _RED, _GRAY = "#3b6ea5", "#c8553d", "#9aa3ad"


@dataclasses.dataclass(frozen=True)
class ReliabilityData:
    """Numbers of a reliability diagram, one entry per bin of equal width over (0, 1]; None for an empty bin.

    Attributes:
        title: Title of the diagram.
        count: Number of images in the bin.
        confidence: Mean probability of their top class.
        accuracy: Share of right predictions among them.
        ece_interval: 95 % interval of the ECE; None if unknown.
    """

    title: str
    count: Sequence[int]
    confidence: Sequence[float | None]
    accuracy: Sequence[float | None]
    ece_interval: tuple[float, float] | None = None

    @property
    def n(self) -> int:
        """Number of all images."""
        return sum(self.count)

    @property
    def ece(self) -> float:
        """Σ_b n_b / N * |accuracy_b - confidence_b|; nan without images."""
        gaps = sum(n * abs(a - c) for n, c, a in self.bins())
        return gaps / self.n if self.n else math.nan

    def bins(self) -> list[tuple[int, float, float]]:
        """Return (count, mean confidence, accuracy) of every non-empty bin."""
        rows = zip(self.count, self.confidence, self.accuracy, strict=True)
        return [(n, c, a) for n, c, a in rows if n and c is not None and a is not None]


@dataclasses.dataclass(frozen=True)
class ScoreHistogram:
    """Histogram of a score for images in and out of distribution (higher means out), with its AUROC."""

    name: str
    edges: Sequence[float]
    inside: Sequence[int]
    outside: Sequence[int]
    auroc: float


@dataclasses.dataclass(frozen=True)
class Bar:
    """Drawn bin: a bar of height `accuracy.value` at `center`, and the gap from there to `confidence`."""

    center: float
    width: float
    confidence: float
    accuracy: Interval


def reliability_bars(data: ReliabilityData) -> list[Bar]:
    """Return the bars of the non-empty bins, with 95 % Wilson intervals. Source: docs/methods.md section 8.6."""
    width = 1 / len(data.count)
    rows = enumerate(zip(data.count, data.confidence, data.accuracy, strict=True))
    return [
        Bar((position + 0.5) * width, width, c, wilson(round(n * a), n))
        for position, (n, c, a) in rows
        if n and c is not None and a is not None
    ]


def caption(data: ReliabilityData) -> str:
    """Return ECE and N in words. Below 1,000 images the interval of the ECE is added, if known."""
    interval = ""
    if data.ece_interval is not None:
        low, high = (100 * end for end in data.ece_interval)
        interval = f" [{low:.1f}, {high:.1f}]"
    return f"{data.title}\nECE {100 * data.ece:.1f} %{interval}, N = {data.n}"


def draw_reliability(panels: Sequence[ReliabilityData], path: Path) -> None:
    """Draw panels side by side as PNG: the diagram, and below it the number of images per bin."""
    figure = Figure(figsize=(4.2 * max(1, len(panels)), 5.2), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, max(1, len(panels)), height_ratios=(3, 1))
    for column, data in enumerate(panels):
        upper = figure.add_subplot(grid[0, column])
        _draw_bars(upper, data)
        lower = figure.add_subplot(grid[1, column], sharex=upper)
        _draw_counts(lower, data)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_confidence(panels: Sequence[ReliabilityData], path: Path) -> None:
    """Draw confidence histograms side by side as PNG: right and wrong predictions by their confidence."""
    figure = Figure(figsize=(4.2 * max(1, len(panels)), 3.2), dpi=110, layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
    for axis, data in zip(axes, panels, strict=False):
        width = 1 / len(data.count)
        centers = [(position + 0.5) * width for position in range(len(data.count))]
        right = [round(n * (a or 0.0)) for n, a in zip(data.count, data.accuracy, strict=True)]
        wrong = [n - r for n, r in zip(data.count, right, strict=True)]
        axis.bar(centers, right, width, color=_BLUE, edgecolor="white", label="right")
        axis.bar(centers, wrong, width, bottom=right, color=_RED, edgecolor="white", label="wrong")
        _mark_means(axis, data)
        axis.set(xlim=(0, 1), xlabel="confidence", title=f"{data.title}, N = {data.n}")
    axes[0].set_ylabel("images")
    axes[0].legend(loc="upper left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_ood(scores: Sequence[ScoreHistogram], title: str, path: Path) -> None:
    """Draw the histograms of each score as PNG, three per row, as shares, since both sets differ in size."""
    n_rows = max(1, math.ceil(len(scores) / 3))
    figure = Figure(figsize=(11, 2.6 * n_rows), dpi=100, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(n_rows, 3, squeeze=False).flatten()
    for axis in axes[len(scores) :]:
        axis.set_axis_off()
    for axis, score in zip(axes, scores, strict=False):
        for counts, color, label in ((score.inside, _BLUE, "in"), (score.outside, _RED, "out")):
            shares = [count / max(1, sum(counts)) for count in counts]
            axis.stairs(shares, score.edges, fill=True, alpha=0.5, color=color, label=f"{label}, N = {sum(counts)}")
        axis.set_title(f"{score.name}: AUROC {100 * score.auroc:.1f} %", fontsize="medium")
        axis.legend(fontsize="x-small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_bars(axes: Axes, data: ReliabilityData) -> None:
    bars = reliability_bars(data)
    centers, heights = [bar.center for bar in bars], [bar.accuracy.value for bar in bars]
    width = 1 / len(data.count)
    axes.plot([0, 1], [0, 1], linestyle="--", color=_GRAY, linewidth=1)
    axes.bar(centers, heights, width, color=_BLUE, edgecolor="white", label="accuracy")
    # The gap goes to the mean confidence of the bin, which is not its center.
    gaps = [bar.confidence - bar.accuracy.value for bar in bars]
    axes.bar(
        centers,
        gaps,
        width,
        bottom=heights,
        color=_RED,
        alpha=0.35,
        edgecolor=_RED,
        hatch="//",
        label="gap to confidence",
    )
    below = [max(0.0, bar.accuracy.value - bar.accuracy.low) for bar in bars]
    above = [max(0.0, bar.accuracy.high - bar.accuracy.value) for bar in bars]
    axes.errorbar(centers, heights, yerr=[below, above], fmt="none", ecolor="black", capsize=2, linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy (95 % Wilson)", title=caption(data))
    axes.legend(loc="upper left", fontsize="small")


def _draw_counts(axes: Axes, data: ReliabilityData) -> None:
    width = 1 / len(data.count)
    centers = [(position + 0.5) * width for position in range(len(data.count))]
    axes.bar(centers, data.count, width, color=_GRAY, edgecolor="white")
    _mark_means(axes, data)
    axes.set(xlabel="confidence", ylabel="images")


def _mark_means(axes: Axes, data: ReliabilityData) -> None:
    """Draw lines at the mean accuracy and the mean confidence. They coincide if the model is calibrated on average."""
    if data.n:
        accuracy = sum(n * a for n, _, a in data.bins()) / data.n
        confidence = sum(n * c for n, c, _ in data.bins()) / data.n
        axes.axvline(accuracy, color=_BLUE, linewidth=1)
        axes.axvline(confidence, color=_RED, linewidth=1, linestyle=":")
