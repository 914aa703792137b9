"""Histogram binning: a probability becomes the share of images of the class in its bin.

Do not measure it with the same bins of equal width on the images it was fitted to.

Source: Zadrozny & Elkan (2001); docs/methods.md section 7.4.
"""

import dataclasses
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.calibration.calibrator import check_targets, normalize_probs, prepare

N_BINS = 15
Array = npt.NDArray[np.float64]
Bins = Literal["width", "mass"]


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """Bins of each class's probability with their values. Each row of values is divided by its sum.

    Attributes:
        edges: Ascending edges of the bins of each class [K][n_bins + 1]. Bins are right-closed and cover [0, 1].
        values: Value of each bin [K][n_bins].
        floor: Values are kept in [floor, 1 - floor], because an exact 0 makes the NLL infinite.
    """

    edges: tuple[tuple[float, ...], ...]
    values: tuple[tuple[float, ...], ...]
    floor: float
    name: ClassVar[str] = "histogram"

    def apply(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return calibrated log-probabilities. The top class may change, and there are many ties."""
        probs = prepare(log_probs).exp().numpy()
        binned = np.stack(
            [
                apply_bins(np.array(edges), np.array(values), column)
                for edges, values, column in zip(self.edges, self.values, probs.T, strict=True)
            ],
            axis=1,
        )
        calibrated = normalize_probs(binned.clip(self.floor, 1 - self.floor), probs)
        return prepare(torch.from_numpy(calibrated).log())


def fit_histogram(
    log_probs: Float[Tensor, "N K"],
    targets: Int[Tensor, "N"],
    bins: Bins = "width",
    n_bins: int = N_BINS,
    floor: float | None = None,
    *,
    is_smoothed: bool = True,
) -> Histogram:
    """Fit the bins of every class's probability.

    Args:
        log_probs: Held-out predictions.
        targets: Class positions.
        bins: Kind of bins: equal width, or equal mass (quantiles).
        n_bins: Number of bins, at least 1; equal quantiles are merged.
        floor: Lowest value; None: 1 / (2 N).
        is_smoothed: True for (n₊ + 1) / (n + 2) instead of n₊ / n.

    Raises:
        ValueError: There are no images.
    """
    labels = check_targets(log_probs, targets).numpy()
    if not len(labels):
        raise ValueError("histogram binning needs images to be fitted to")
    probs = prepare(log_probs).exp().numpy()
    fitted = [
        fit_bins(column, (labels == k).astype(np.float64), bins, n_bins, is_smoothed=is_smoothed)
        for k, column in enumerate(probs.T)
    ]
    return Histogram(
        edges=tuple(tuple(edges.tolist()) for edges, _ in fitted),
        values=tuple(tuple(values.tolist()) for _, values in fitted),
        floor=1 / (2 * len(labels)) if floor is None else floor,
    )


def fit_bins(probs: Array, labels: Array, bins: Bins, n_bins: int, *, is_smoothed: bool) -> tuple[Array, Array]:
    """Return edges and values. The value of an empty bin is its center."""
    grid = np.linspace(0, 1, n_bins + 1)
    edges: Array = np.asarray(grid if bins == "width" else np.unique(np.quantile(probs, grid)), dtype=np.float64)
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    positions = _positions(edges, probs)
    count = np.bincount(positions, minlength=len(edges) - 1).astype(np.float64)
    hits = np.bincount(positions, labels, len(edges) - 1)
    extra = 1.0 if is_smoothed else 0.0
    shares = (hits + extra) / np.where(count > 0, count + 2 * extra, 1.0)
    return edges, np.where(count > 0, shares, (edges[:-1] + edges[1:]) / 2)


def apply_bins(edges: Array, values: Array, probs: Array) -> Array:
    """Return the value of each probability's bin."""
    return np.asarray(values[_positions(edges, probs)])


def _positions(edges: Array, probs: Array) -> npt.NDArray[np.int64]:
    """Return the right-closed bin of each probability. Values outside belong to the outer bins."""
    return np.clip(np.searchsorted(edges, probs, side="left") - 1, 0, len(edges) - 2).astype(np.int64)
