"""Pools of this benchmark: the five natural sets, and sets that were changed to hurt smoothing."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("label_efficiency", "calibration")]

import data  # noqa: E402
from sets import IMAGE_SIZES, Task, load_task, save_features  # noqa: E402

NATURAL = ("trashnet", "cifar10", "digits", "fashion-mnist", "bccd")
PAIRS = {"cat-dog": (3, 5), "deer-horse": (4, 7), "automobile-truck": (1, 9)}  # positions of CIFAR-10's classes
JUNK = {"trashnet": "fashion-mnist", "cifar10": "trashnet", "fashion-mnist": "bccd", "bccd": "fashion-mnist"}
MOST = 6_000  # images of a pool
JUNK_SHARE, RATIO = 0.2, 20.0


@dataclasses.dataclass(frozen=True)
class Scene:
    """A pool and measured images. Rows of the pool from `len(y)` on are junk: no class, and nobody is asked about them.

    Attributes:
        F: Features of the pool [N + J, D].
        y: Positions of classes [N].
        F_test: Features of the measured images.
        y_test: Their classes.
    """

    F: np.ndarray
    y: np.ndarray
    F_test: np.ndarray
    y_test: np.ndarray

    @property
    def n_classes(self) -> int:
        return int(max(self.y.max(), self.y_test.max())) + 1


def natural(name: str, seed: int, work: Path) -> Scene:
    task = _load(name, seed, work)
    return Scene(task.F[:MOST], task.y[:MOST], task.F_test, task.y_test)


def cut(name: str, seed: int, work: Path) -> Scene:
    """Two classes, cut at the median of the principal component below which half of the variance lies."""
    scene = natural(name, seed, work)
    mean = scene.F.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((scene.F - mean).T.astype(np.float64)))
    shares = np.cumsum(values[::-1]) / values.sum()
    axis = vectors[:, ::-1][:, int(np.searchsorted(shares, 0.5))]
    at = (scene.F - mean) @ axis
    middle = np.median(at)
    y_test = ((scene.F_test - mean) @ axis > middle).astype(np.int64)
    return dataclasses.replace(scene, y=(at > middle).astype(np.int64), y_test=y_test)


def pair(name: str, seed: int, work: Path) -> Scene:
    """Two classes of CIFAR-10 that look alike; the pool has nothing else."""
    task = _load("cifar10", seed, work)
    one, other = PAIRS[name]
    pool, test = (np.isin(y, (one, other)) for y in (task.y, task.y_test))
    return Scene(task.F[pool], (task.y[pool] == other).astype(np.int64), task.F_test[test],
                 (task.y_test[test] == other).astype(np.int64))  # fmt: skip


def junk(name: str, seed: int, work: Path) -> Scene:
    """Every fifth image of the pool is of another set."""
    scene = natural(name, seed, work)
    n = round(len(scene.y) * JUNK_SHARE / (1 - JUNK_SHARE))
    if name == "digits":  # pixels: Fashion-MNIST in the same 8 x 8
        pixels = data._idx(data.FASHION / "train-images-idx3-ubyte")[: 10 * n]
        padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2))).reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
        other = (padded.reshape(len(pixels), 64) / 255).astype(np.float32)
    else:
        other = _load(JUNK[name], seed, work).F
    drawn = np.random.default_rng([seed, 1]).permutation(len(other))[:n]
    return dataclasses.replace(scene, F=np.concatenate([scene.F, other[np.sort(drawn)]]))


def imbalanced(name: str, seed: int, work: Path) -> Scene:
    """Classes in random order keep from all to a twentieth of their images, in geometric steps; measured on all."""
    scene = natural(name, seed, work)
    generator = np.random.default_rng([seed, 2])
    counts = np.bincount(scene.y)
    wanted = np.median(counts) * RATIO ** -np.linspace(0, 1, len(counts))[generator.permutation(len(counts))]
    kept = [
        generator.permutation(np.flatnonzero(scene.y == k))[: max(1, round(n))] for k, n in enumerate(wanted.tolist())
    ]
    rows = np.sort(np.concatenate(kept))
    return dataclasses.replace(scene, F=scene.F[rows], y=scene.y[rows])


def _load(name: str, seed: int, work: Path) -> Task:
    """Load a set. Of CIFAR-10, the first 6,000 training images are the pool, and the next 6,000 are measured."""
    if name != "cifar10":
        return load_task(name, seed, work)
    path = work / f"cifar10-{2 * MOST}.npz"
    if not path.exists():
        save_features(data.load(name, work, 1, 2 * MOST), IMAGE_SIZES[name], work, path)
    with np.load(path) as arrays:
        F, y = arrays["F"], arrays["y"]
    return Task(F[:MOST], y[:MOST], F[MOST : 2 * MOST], y[MOST : 2 * MOST])


Maker = Callable[[int, Path], Scene]


def _makers() -> Mapping[str, Maker]:
    made: dict[str, Maker] = {}
    kinds = {"natural": (natural, NATURAL), "cut": (cut, NATURAL), "pair": (pair, PAIRS), "junk": (junk, NATURAL),
             "imbalanced": (imbalanced, [name for name in NATURAL if name != "bccd"])}  # fmt: skip
    for kind, (make, names) in kinds.items():
        for name in names:
            made[f"{kind}/{name}"] = lambda seed, work, make=make, name=name: make(name, seed, work)
    return made


SCENES = _makers()  # "kind/name" → maker
