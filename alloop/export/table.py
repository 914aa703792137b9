"""Table of typed rows over Arrow columns, for Python programs."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final, overload

import pyarrow as pa

from alloop.errors import AlloopError

if TYPE_CHECKING:
    import pandas

Row = TypeVar("Row", covariant=True)
_AT_ONCE = 1024  # rows that are made at once


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Table(Sequence[Row], Generic[Row]):
    """Rows of one kind, read once: later changes of the workspace do not show.

    A table is a sequence of rows (`len`, `for`, `[0]`), and its columns are Arrow arrays.
    """

    _columns: pa.Table
    _make: Callable[[dict[str, Any]], Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(self._columns.column_names)

    def to_arrow(self) -> pa.Table:
        """Return the columns as an Arrow table, without a copy."""
        return self._columns

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a data frame. What does not exist is null; integers that may be missing become floats.

        Raises:
            AlloopError: pandas is not installed.
        """
        try:
            import pandas  # noqa: F401
        except ModuleNotFoundError as error:
            raise AlloopError(
                "pandas is not installed.", "Run `pip install pandas`, or use `to_arrow()`, which needs nothing more."
            ) from error
        return self._columns.to_pandas()

    def __len__(self) -> int:
        return int(self._columns.num_rows)

    def __iter__(self) -> Iterator[Row]:
        for batch in self._columns.to_batches(_AT_ONCE):
            yield from map(self._make, batch.to_pylist())

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Table[Row]": ...
    def __getitem__(self, index: int | slice) -> "Row | Table[Row]":
        if isinstance(index, slice):
            return Table(self._columns.take(pa.array(range(*index.indices(len(self))), pa.int64())), self._make)
        place = range(len(self))[index]
        return self._make(self._columns.slice(place, 1).to_pylist()[0])

    def __repr__(self) -> str:
        return f"<Table of {len(self)} rows: {', '.join(self.columns)}>"
