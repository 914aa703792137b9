"""Layout of images on a plane: images whose features are alike by cosine lie near each other."""

import contextlib
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
Floats = npt.NDArray[np.floating]
_STEP = re.compile(r"Iteration (\d+)")


def lay_out(features: Floats, seed: int, progress: Progress = silent) -> npt.NDArray[np.float32]:
    """Return places of images on a plane: their strongest principal axes, arranged by t-SNE.

    One thread computes, because the order of sums over several threads changes the result. The time grows a little
    faster than N.

    Args:
        features: Finite features [N, D].
        seed: Seed of the arrangement. The same seed gives the same bytes on the same machine.
        progress: Called while t-SNE arranges.

    Returns:
        Coordinates [N, 2] in [-1, 1], with 0 in the middle; of equal images, equal ones if there are few images.

    Source: van der Maaten (2014), Accelerating t-SNE using Tree-Based Algorithms.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(lengths, np.finfo(features.dtype).tiny)
    is_small = len({hash(row.tobytes()) for row in unit}) < FEWEST
    return _fitted(_strongest_axes(unit) if is_small else _arranged(unit, seed % 2**32, progress))


def _strongest_axes(rows: Floats) -> Floats:
    places = np.zeros((len(rows), 2))
    if len(rows) > 1:
        vectors, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        found = (vectors * values)[:, :2]
        places[:, : found.shape[1]] = found
    return places


def _arranged(rows: Floats, seed: int, progress: Progress) -> Floats:
    import sklearn.manifold  # noqa: F401 - takes a second to load, and must be there before its threads are limited
    from sklearn.decomposition import PCA

    with threadpool_limits(1):  # of the libraries that are loaded by now
        return _by_tsne(PCA(min(AXES, *rows.shape), random_state=seed).fit_transform(rows), seed, progress)


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
