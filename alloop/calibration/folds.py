"""Cross-validation folds for few labels, also with fewer images of a class than folds."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Positions = npt.NDArray[np.int64]


def draw_folds(targets: Positions, seed: int, n_folds: int) -> list[tuple[Tensor, Tensor]]:
    """Return positions (rest, fold) of each fold. Classes with fewer images than folds are drawn as one class.

    The folds are those of scikit-learn's StratifiedKFold with `shuffle`, and of its KFold if the classes with few
    images have fewer than `n_folds` together. scikit-learn itself takes longer to import than torch.

    Raises:
        ValueError: There are fewer images than folds.
    """
    if len(targets) < n_folds:
        raise ValueError(f"{len(targets)} images cannot be divided into {n_folds} folds")
    _, groups, counts = np.unique(targets, return_inverse=True, return_counts=True)
    groups = np.where(counts[groups] < n_folds, -1, groups)
    has_few_rare = 0 < (groups == -1).sum() < n_folds
    generator = np.random.RandomState(seed % 2**32)
    fold_of = _deal(generator, len(groups), n_folds) if has_few_rare else _deal_classes(generator, groups, n_folds)
    split = [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(n_folds)]
    return [(torch.from_numpy(rest), torch.from_numpy(fold)) for rest, fold in split]


def _deal(generator: np.random.RandomState, n: int, n_folds: int) -> Positions:
    """Return the fold of each of n images, in [0, n_folds): parts of a random order, the larger ones first."""
    order = generator.permutation(n)
    fold_of = np.empty(n, dtype=np.int64)
    for fold, part in enumerate(np.array_split(order, n_folds)):
        fold_of[part] = fold
    return fold_of


def _deal_classes(generator: np.random.RandomState, classes: Positions, n_folds: int) -> Positions:
    """Return the fold of each image. Folds differ by at most one image of a class, and by one image in all."""
    _, first, inverse = np.unique(classes, return_index=True, return_inverse=True)
    appearance = np.argsort(np.argsort(first))[inverse]  # classes numbered in the order of their first image
    ordered = np.sort(appearance)
    shares = [np.bincount(ordered[fold::n_folds], minlength=len(first)) for fold in range(n_folds)]
    fold_of = np.empty(len(classes), dtype=np.int64)
    for number, share in enumerate(np.transpose(shares)):
        folds = np.arange(n_folds).repeat(share)
        generator.shuffle(folds)
        fold_of[appearance == number] = folds
    return fold_of
