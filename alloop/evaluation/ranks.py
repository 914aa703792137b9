"""Average ranks of methods over several measures. 1 is best."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Array = npt.NDArray[np.float64]


def ranks(values: npt.NDArray[np.floating], higher_is_better: Sequence[bool]) -> Array:
    """Return the rank of every method in every measure [methods, measures]. Equal values share their mean rank.

    Args:
        values: Values [methods, measures]; inf is allowed (an infinite NLL is last).
        higher_is_better: Direction of each measure.

    Raises:
        ValueError: The number of measures is wrong, or a value is nan; names the row.
    """
    wide = np.asarray(values, dtype=np.float64)
    if wide.ndim != 2 or wide.shape[1] != len(higher_is_better):
        raise ValueError(f"{len(higher_is_better)} directions do not fit values of shape {list(wide.shape)}")
    if np.isnan(wide).any():
        raise ValueError(f"the measures of row {int(np.isnan(wide).any(axis=1).argmax())} hold nan, which has no rank")
    signed = np.where(np.asarray(higher_is_better), -wide, wide)
    return np.asarray(rankdata(signed, axis=0), dtype=np.float64)


def average_rank(values: npt.NDArray[np.floating], higher_is_better: Sequence[bool] = (True, False, False)) -> Array:
    """Return the mean rank of every method [methods]; by default over accuracy, ECE and NLL.

    Source: docs/methods.md section 8.5.
    """
    return np.asarray(ranks(values, higher_is_better).mean(axis=1))
