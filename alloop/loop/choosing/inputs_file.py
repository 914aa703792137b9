"""File of the inputs of a round's choice: candidates with their tie keys, and known training images."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from alloop.columns import numbers, read_parquet, write_parquet
from alloop.errors import ModelError
from alloop.files import atomic_path, sha256_of
from alloop.loop.choosing.evidence import Known
from alloop.loop.choosing.selection import AskableImages
from alloop.records import ImageRef


def write_inputs(path: Path, candidates: AskableImages, known: Known) -> str:
    """Write the file as a whole, and return its SHA-256.

    A row with a key is a candidate, in the order of choosing; a row with a label is a known image. Names and hashes of
    images are not repeated: the database has them by id.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    refs = (*candidates.refs, *known.refs)
    table = pa.table(
        {
            "image_id": pa.array([ref.image_id for ref in refs], pa.int64()),
            "depth": pa.array([ref.depth for ref in refs], pa.int8()),
            "key": _with_nulls(pa.array(candidates.keys, pa.uint64()), after=len(known.refs)),
            "label": _with_nulls(pa.array(known.labels, pa.int64()), before=len(candidates.refs)),
        }
    ).replace_schema_metadata(
        {"alloop.n_groups": str(candidates.n_groups), "alloop.notes": json.dumps(list(candidates.notes))}
    )
    with atomic_path(path) as temporary, write_parquet(temporary, table.schema) as writer:
        writer.write_table(table)
    return sha256_of(path)


def read_inputs(
    path: Path, sha256: str, find_refs: Callable[[Iterable[int]], Mapping[int, ImageRef]]
) -> tuple[AskableImages, Known]:
    """Read the inputs of a round's choice.

    Args:
        path: Place of the file.
        sha256: Checksum of the file.
        find_refs: Function that finds all images by their ids, also those without a file.

    Raises:
        ModelError: The file is missing or damaged.
    """
    if not path.exists() or sha256_of(path) != sha256:
        raise ModelError(
            f"The candidates in {path} are missing or damaged.", "Put the file back from a backup of the workspace."
        )
    with read_parquet(path) as file:
        table = file.read()
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    ids, depths = table["image_id"].to_pylist(), table["depth"].to_pylist()
    found = find_refs(ids)
    refs = [
        ImageRef(image_id, found[image_id].sha256, found[image_id].path, depth, is_admitted=True)
        for image_id, depth in zip(ids, depths, strict=True)
    ]
    keys, labels = numbers(table["key"].drop_null()), numbers(table["label"].drop_null())
    candidates = AskableImages(
        refs=tuple(refs[: len(keys)]),
        keys=keys,
        n_groups=int(metadata["alloop.n_groups"]),
        notes=tuple(json.loads(metadata["alloop.notes"])),
    )
    return candidates, Known(tuple(refs[len(keys) :]), labels)


def _with_nulls(values: pa.Array, before: int = 0, after: int = 0) -> pa.Array:
    return pa.concat_arrays([pa.nulls(before, values.type), values, pa.nulls(after, values.type)])
