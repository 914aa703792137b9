"""Columns of numbers between NumPy and Arrow, and the Parquet files that hold them.

pyarrow's own `to_numpy` and `read_table` would import pandas, which takes long.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def write_parquet(path: Path, schema: Any) -> Any:
    """Return a writer of a Parquet file, for a `with` block. Every page of the file gets a checksum."""
    import pyarrow.parquet as pq  # takes a tenth of a second, and few commands need it

    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def read_parquet(path: Path) -> Any:
    """Return a reader of a Parquet file, for a `with` block.

    Raises:
        OSError: The file is missing or damaged. Reading raises it, too, for a page that differs from its checksum.
        ValueError: The file is not a Parquet file.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, page_checksum_verification=True)


def numbers(column: Any) -> npt.NDArray[Any]:
    """Return a column of numbers [N], without missing ones, as a read-only array."""
    return np.from_dlpack(column.combine_chunks())


def flat_numbers(column: Any) -> npt.NDArray[np.float32]:
    """Return the numbers of a column of lists, one list after another, as an array that may be read-only."""
    flat: Any = np.from_dlpack(column.combine_chunks().flatten())
    return np.asarray(flat, dtype=np.float32)


def lists_of(values: npt.NDArray[np.floating], width: int) -> Any:
    """Return an Arrow array of lists of `width` numbers each, float32, from numbers in this order."""
    import pyarrow as pa

    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
