"""Rows of predictions in files: CSV, JSON lines, Parquet, one JSON document, lines for a terminal, folders of images.

Rows come as Arrow batches. Every format has the same columns in every row, also if no image could be read. A value that
does not exist is empty (CSV) or null. Numbers are float32, written with as many digits as give back the same float32.
"""

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from alloop.errors import LabelError
from alloop.files import OUTPUT_MARK, atomic_folder, atomic_path, check_new_folder
from alloop.names import folder_names
from alloop.pool.placing import place_image, placed_name

GROUP_VALUES = 1_000_000  # values in a row group of Parquet, which are in memory at once
UNSURE = "unsure"  # folder of images below the smallest probability


class RowWriter(Protocol):
    """Receives rows, a batch at a time."""

    def write(self, rows: pa.RecordBatch) -> None: ...


@contextlib.contextmanager
def open_rows(
    path: Path, form: str, columns: pa.Schema, head: Mapping[str, object] | None = None
) -> Iterator[RowWriter]:
    """Write a file of rows: "csv", "jsonl", "parquet" or "json". It gets its name when the block ends without an error.

    Args:
        path: File; an existing one is replaced. Standard output receives everything at the end.
        form: Format.
        columns: Columns of all rows: texts, float32 and truth values.
        head: What the document of "json" says besides its `images`.

    Raises:
        WorkspaceError: The disk is full, or the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        if form in ("parquet", "csv"):
            with _Parquet(temporary, columns) if form == "parquet" else _Csv(temporary, columns) as writer:
                yield writer
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if form == "jsonl":
                yield _JsonLines(file)
            else:
                document = _JsonDocument(file, head or {})
                yield document
                document.end()


@contextlib.contextmanager
def open_folders(
    target: Path, classes: Sequence[str], *, copy: bool, min_probability: float
) -> Iterator["SortedFolders"]:
    """Make a folder of images for each predicted class. It appears when the block ends without an error.

    Args:
        target: New or empty folder.
        classes: Classes of the model.
        copy: Copy images instead of linking to them.
        min_probability: Images whose predicted class has a smaller probability go to the folder `unsure`.

    Raises:
        LabelError: The folder is not empty, or a class cannot be the name of a folder. Nothing is written.
        WorkspaceError: The disk is full, or the folder cannot be written.
    """
    names = folder_names(classes)
    same = [name for name, folder in names.items() if folder.casefold() == UNSURE]
    if same and min_probability > 0:
        raise LabelError(
            f"Images below --min-probability go to the folder '{UNSURE}', and there is a class '{same[0]}'.",
            "Leave out --min-probability, and sort by the column `probability` of --out.",
        )
    hint = "Name a new folder: images never go into a folder that holds other files."
    check_new_folder(target, hint, error=LabelError)
    with atomic_folder(target) as folder:
        (folder / OUTPUT_MARK).touch()
        yield SortedFolders(folder, names, copy=copy, min_probability=min_probability)


class SortedFolders:
    """Puts images into a folder for each predicted class. Images that cannot be read are left out.

    Attributes:
        unsure: Number of images that went to `unsure`.
    """

    def __init__(self, folder: Path, names: Mapping[str, str], *, copy: bool, min_probability: float) -> None:
        self._folder, self._names, self._copy = folder, names, copy
        self._least = float(np.float32(min_probability))  # as the probabilities are written
        self.unsure = 0

    def write(self, rows: pa.RecordBatch) -> None:
        for row in rows.to_pylist():
            if row["reason"] is not None:
                continue
            is_unsure = row["probability"] < self._least
            self.unsure += is_unsure
            folder = self._folder / (UNSURE if is_unsure else self._names[row["predicted"]])
            place_image(row["file"], self._free(folder, row["file"], row["sha256"]), copy=self._copy)

    def _free(self, folder: Path, location: str, sha256: str) -> Path:
        """Return a free name: the same picture may come twice under one file name, from two folders."""
        digits, number = sha256[:8], 1
        while os.path.lexists(place := folder / placed_name(location, digits)):
            number += 1
            digits = f"{sha256[:8]}-{number}"
        return place


class TerminalLines:
    """Prints a short line for each image, for people.

    Args:
        out: Stream of the terminal.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, rows: pa.RecordBatch) -> None:
        for row in rows.to_pylist():
            if row["reason"] is not None:
                told = f"not readable: {row['reason']}"
            else:
                told = f"{row['predicted']}  {row['probability']:.3f}"
                told += "  suspect" if row["suspect"] else ""
                told += f"  (label: {row['label']})" if row["label"] is not None else ""
            self._out.write(f"{row['file']}  {told}\n")


class _Csv:
    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self._path, self._columns = path, columns

    def __enter__(self) -> "_Csv":
        with self._path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(self._columns.names)
        self._file = self._path.open("ab")
        options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed")
        self._writer: Any = pyarrow.csv.CSVWriter(self._file, self._columns, write_options=options)
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._file.close()

    def write(self, rows: pa.RecordBatch) -> None:
        self._writer.write_batch(rows)


class _JsonLines:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, rows: pa.RecordBatch) -> None:
        self._file.writelines(_json(row) + "\n" for row in _each(rows))


class _JsonDocument:
    """One JSON object, whose rows are written as they come."""

    def __init__(self, file: TextIO, head: Mapping[str, object]) -> None:
        self._file, self._n, self._unreadable = file, 0, 0
        self._file.write(_json(head)[:-1] + (", " if head else "") + '"images": [')

    def write(self, rows: pa.RecordBatch) -> None:
        for row in _each(rows):
            self._file.write(("," if self._n else "") + "\n  " + _json(row))
            self._n += 1
            self._unreadable += row["reason"] is not None

    def end(self) -> None:
        self._file.write(f'\n], "unreadable": {self._unreadable}}}\n')


class _Parquet:
    """Collects rows until they are worth a row group."""

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self._path, self._schema = path, columns
        self._pending: list[Any] = []
        self._n_pending, self._most = 0, max(1, GROUP_VALUES // len(columns.names))

    def __enter__(self) -> "_Parquet":
        self._writer: Any = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()

    def write(self, rows: pa.RecordBatch) -> None:
        self._pending.append(rows)
        self._n_pending += rows.num_rows
        if self._n_pending >= self._most:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._pending, schema=self._schema))
        self._pending, self._n_pending = [], 0


def _each(rows: pa.RecordBatch) -> Iterator[dict[str, object]]:
    """Yield the rows one by one, with the numbers that their texts in CSV stand for."""
    columns = []
    for values in rows.columns:
        if pa.types.is_floating(values.type):
            columns.append([None if text is None else float(text) for text in values.cast(pa.string()).to_pylist()])
        else:
            columns.append(values.to_pylist())
    for row in zip(*columns, strict=True):
        yield dict(zip(rows.schema.names, row, strict=True))


def _json(row: Mapping[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)
