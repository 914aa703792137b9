"""Columns of numbers between NumPy and Arrow. pyarrow's own `to_numpy` would import pandas, which takes long."""

from typing import Any

import numpy as np
import numpy.typing as npt


def numbers(column: Any) -> npt.NDArray[Any]:
    """Return a column of numbers [N], without missing ones, as a read-only array."""
    return np.from_dlpack(column.combine_chunks())


def flat_numbers(column: Any) -> npt.NDArray[np.float32]:
    """Return the numbers of a column of lists, one list after another, as an array that may be read-only."""
    flat: Any = np.from_dlpack(column.combine_chunks().flatten())
    return np.asarray(flat, dtype=np.float32)


def lists_of(values: npt.NDArray[np.floating], width: int) -> Any:
    """Return an Arrow array of lists of `width` numbers each, float32, from numbers in this order."""
    import pyarrow as pa  # takes a tenth of a second, and few commands write columns

    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
