"""Cross-validation folds for few labels, also with fewer images of a class than folds."""

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor


def draw_folds(targets: npt.NDArray[np.int64], seed: int, n_folds: int) -> list[tuple[Tensor, Tensor]]:
    """Return positions (rest, fold) of each fold. Classes with fewer images than folds are drawn as one class."""
    _, groups, counts = np.unique(targets, return_inverse=True, return_counts=True)
    rare = counts < n_folds
    groups = np.where(rare[groups], -1, groups)
    has_few_rare = 0 < (groups == -1).sum() < n_folds
    splitter = KFold if has_few_rare else StratifiedKFold
    split = splitter(n_folds, shuffle=True, random_state=seed % 2**32).split(groups, groups)
    return [(torch.from_numpy(rest), torch.from_numpy(fold)) for rest, fold in split]
