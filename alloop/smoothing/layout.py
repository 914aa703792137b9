"""Layout of images on a plane: images whose features are alike by cosine lie near each other."""

import contextlib
import dataclasses
import io
import re

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from alloop.progress import Progress, silent

VERSION = 1  # goes up when the same features get other places
AXES = 50  # principal axes that t-SNE sees
FEWEST = 50  # different images, below which the two strongest axes are the plane
PERPLEXITY = 30.0
EQUAL = 1e-6  # distance up to which all images count as equal; features have length 1
STEPS = 1000  # of the optimization, most
NEIGHBORS = 5  # images on the map beside which another image is placed
CHUNK = 500  # images that are placed at once
Floats = npt.NDArray[np.floating]
_STEP = re.compile(r"Iteration (\d+)")


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Arranged images, with what it takes to place others beside them.

    Attributes:
        places: Coordinates [N, 2] in [-1, 1].
        rows: Images along the principal axes [N, A].
        mean: Center of the features of length 1 [D].
        axes: Principal axes [A, D].
    """

    places: npt.NDArray[np.float32]
    rows: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]
    axes: npt.NDArray[np.float32]

    def place(self, features: Floats) -> npt.NDArray[np.float32]:
        """Return places [B, 2] of other images: means over their five nearest neighbors along the principal axes.

        A neighbor weighs by the inverse of its squared distance, so a copy of an arranged image lies on its place.

        Args:
            features: Finite features [B, D].
        """
        rows = ((_unit(features) - self.mean) @ self.axes.T).astype(np.float32)
        parts = [self._place(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
        return np.concatenate([np.zeros((0, 2), dtype=np.float32), *parts])

    def _place(self, rows: Floats) -> npt.NDArray[np.float32]:
        squared = (rows**2).sum(axis=1)[:, None] - 2 * rows @ self.rows.T + (self.rows**2).sum(axis=1)
        total, weights = np.zeros((len(rows), 2)), np.zeros(len(rows))
        every = np.arange(len(rows))
        for _ in range(min(NEIGHBORS, len(self.rows))):  # quicker than a partition of all distances
            near = squared.argmin(axis=1)
            weight = 1 / np.maximum(squared[every, near], EQUAL)
            total += weight[:, None] * self.places[near]
            weights += weight
            squared[every, near] = np.inf
        return np.asarray(total / weights[:, None], dtype=np.float32)


def lay_out(features: Floats, seed: int, progress: Progress = silent) -> Layout:
    """Return places of images on a plane: their strongest principal axes, arranged by t-SNE.

    One thread computes, because the order of sums over several threads changes the result. The time grows a little
    faster than N.

    Args:
        features: Finite features [N, D].
        seed: Seed of the arrangement. The same seed gives the same bytes on the same machine.
        progress: Called while t-SNE arranges.

    Returns:
        Layout whose coordinates have 0 in the middle; equal images have equal ones if there are few images.

    Source: van der Maaten (2014), Accelerating t-SNE using Tree-Based Algorithms.
    """
    unit = _unit(features)
    is_small = len({hash(row.tobytes()) for row in unit}) < FEWEST
    places, rows, mean, axes = _strongest_axes(unit) if is_small else _arranged(unit, seed % 2**32, progress)
    return Layout(_fitted(places), *(np.asarray(part, dtype=np.float32) for part in (rows, mean, axes)))


def _unit(features: Floats) -> Floats:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, np.finfo(features.dtype).tiny))


def _strongest_axes(unit: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return places along the two strongest axes; and rows, mean and axes, as in `Layout`."""
    if not len(unit):
        return np.zeros((0, 2)), unit, unit.sum(axis=0), np.eye(unit.shape[1])
    mean, places = unit.mean(axis=0), np.zeros((len(unit), 2))
    vectors, values, axes = np.linalg.svd(unit - mean, full_matrices=False)
    rows = vectors * values
    if len(unit) > 1:
        places[:, : rows.shape[1]] = rows[:, :2]
    return places, rows, mean, axes


def _arranged(unit: Floats, seed: int, progress: Progress) -> tuple[Floats, Floats, Floats, Floats]:
    """Return places by t-SNE; and rows, mean and axes, as in `Layout`."""
    import sklearn.manifold  # noqa: F401 - takes a second to load, and must be there before its threads are limited
    from sklearn.decomposition import PCA

    with threadpool_limits(1):  # of the libraries that are loaded by now
        axes = PCA(min(AXES, *unit.shape), random_state=seed)
        rows = axes.fit_transform(unit)
        return _by_tsne(rows, seed, progress), rows, axes.mean_, axes.components_


def _by_tsne(axes: Floats, seed: int, progress: Progress) -> Floats:
    from sklearn.manifold import TSNE

    start = np.zeros((len(axes), 2), dtype=np.float32)
    start[:, : axes.shape[1]] = axes[:, :2] / axes[:, 0].std() * 1e-4
    perplexity = min(PERPLEXITY, (len(axes) - 1) / 3)
    arrangement = TSNE(perplexity=perplexity, init=start, max_iter=STEPS, random_state=seed, n_jobs=1, verbose=2)
    progress("layout", 0, STEPS)
    with contextlib.redirect_stdout(_Steps(progress)):
        places: Floats = arrangement.fit_transform(axes)
    progress("layout", STEPS, STEPS)
    return places


def _fitted(places: Floats) -> npt.NDArray[np.float32]:
    """Move and scale places into the square from -1 to 1."""
    if not len(places):
        return np.zeros((0, 2), dtype=np.float32)
    centered = places - (places.min(axis=0) + places.max(axis=0)) / 2
    widest = float(np.abs(centered).max())
    return np.asarray(centered / widest if widest > EQUAL else 0 * centered, dtype=np.float32)


class _Steps(io.TextIOBase):
    """Reads how far scikit-learn is from what it prints: it has no other way to say it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def write(self, text: str) -> int:
        if found := _STEP.search(text):
            self._progress("layout", min(STEPS - 1, int(found[1])), STEPS)
        return len(text)
