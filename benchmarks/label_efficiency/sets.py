"""Features, labels and splits, the same for alloop and its peers, and the one head that scores all picks."""

import dataclasses
import io
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from alloop.engine.settings import EngineSettings
from alloop.files import write_bytes

sys.path.insert(0, str(Path(__file__).parents[1] / "calibration"))
if TYPE_CHECKING:
    from data import ImageSet

BATCHES = {"trashnet": 40, "cifar10": 100, "digits": 20, "bccd": 20, "fashion-mnist": 50}
IMAGE_SIZES = {"trashnet": None, "cifar10": 112, "bccd": 112, "fashion-mnist": 112}  # None: the size of the weights
OWN_TEST = {"cifar10": (20_000, 10_000), "fashion-mnist": (6_000, 4_000)}  # images of the pool, measured images
ROUNDS, SEEDS, TEST_SHARE = 10, 5, 0.3
C = 0.01  # of the scoring head
LOOSE = {"digits": 1.0}  # another C that a set is also scored with; README.md gives the reason


@dataclasses.dataclass(frozen=True)
class Task:
    """Features to ask about [N, D], and features that are only measured; labels are positions of classes."""

    F: np.ndarray
    y: np.ndarray
    F_test: np.ndarray
    y_test: np.ndarray


class Head:
    """A logistic head on features that are standardized by the whole pool; this needs no labels."""

    def __init__(self, task: Task) -> None:
        self.mean, self.scale = task.F.mean(axis=0), task.F.std(axis=0)
        self.scale[self.scale < 1e-6] = 1.0
        self.Z, self.Z_test = self.standardize(task.F), self.standardize(task.F_test)
        self.y, self.y_test = task.y, task.y_test

    def standardize(self, F: np.ndarray) -> np.ndarray:
        return ((F - self.mean) / self.scale).astype(np.float32)

    def accuracy(self, rows: np.ndarray, c: float = C) -> float:
        """Return the test accuracy of a head fitted to `rows`. With a single class, it always predicts this class."""
        if len(np.unique(self.y[rows])) < 2:
            return float((self.y_test == self.y[rows[0]]).mean())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # every head gets 300 iterations, even if it needs more
            fitted = LogisticRegression(C=c, max_iter=300).fit(self.Z[rows], self.y[rows])
        return float((fitted.predict(self.Z_test) == self.y_test).mean())

    def curve(self, picks: list[list[int]], c: float = C) -> list[float]:
        """Return the accuracy after every batch."""
        order = np.concatenate([np.array(batch) for batch in picks])
        return [self.accuracy(np.sort(order[:n]), c) for n in np.cumsum([len(batch) for batch in picks])]


def load_task(name: str, seed: int, work: Path) -> Task:
    """Load a set. Some sets have their own test images; from the others the seed draws 30 %."""
    F, y, part = _features(name, work)
    test = np.flatnonzero(part == "test")
    if not len(test):
        order = np.random.default_rng(seed).permutation(len(F))
        test = np.sort(order[: round(TEST_SHARE * len(F))])
    pool = np.setdiff1d(np.arange(len(F)), test)
    return Task(F[pool], y[pool], F[test], y[test])


def files_of(name: str, seed: int, work: Path) -> tuple[Path, Path]:
    """Return the archives that `alloop simulate` takes, written once: the pool, and the measured rows."""
    kept = 0 if name in OWN_TEST else seed  # one split serves all seeds
    paths = tuple(work / f"{name}-{kept}-{part}.npz" for part in ("pool", "test"))
    if not all(path.exists() for path in paths):
        task = load_task(name, kept, work)
        for path, F, y in zip(paths, (task.F, task.F_test), (task.y, task.y_test), strict=True):
            _save(path, F=F, y=y)
    return paths[0], paths[1]


def _features(name: str, work: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if name == "digits":
        F, y = load_digits(return_X_y=True)
        return (F / 16).astype(np.float32), y.astype(np.int64), np.full(len(y), "all")
    path = work / f"{name}.npz"
    if not path.exists():
        _extract(name, work, path)
    with np.load(path) as arrays:
        return arrays["F"], arrays["y"], arrays["part"]


def _extract(name: str, work: Path, path: Path) -> None:
    """Write EfficientNet-lite0's features of every image; use the cache of benchmarks/calibration if FOLDER has one."""
    import data  # of benchmarks/calibration

    n_train, n_test = OWN_TEST.get(name, (0, 0))
    save_features(data.load(name, work, n_test or None, n_train), IMAGE_SIZES[name], work, path)


def save_features(images: "ImageSet", image_size: int | None, work: Path, path: Path) -> None:
    """Write EfficientNet-lite0's features, classes and parts of all images of a set."""
    import data  # of benchmarks/calibration
    from frozen import make_config

    from alloop.engine.build import build_backbone, build_hardware
    from alloop.engine.features import ensure_features

    config = make_config(images.classes, image_size)
    data.warm(images.images, config, work / "cache")
    cache, _ = ensure_features(
        images.images,
        build_backbone(EngineSettings.of(config)),
        work / "cache",
        build_hardware(EngineSettings.of(config), None),
    )
    F = cache.take([image.sha256 for image in images.images])
    y = np.array([images.classes.index(label) for label in images.labels])
    _save(path, F=F, y=y, part=np.array(images.parts))


def _save(path: Path, **arrays: np.ndarray) -> None:
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_bytes(path, file.getvalue())
