"""Scores of a pool in a columnar file, read by column. `score_writer` writes it. Only tensors need torch."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alloop.columns import flat_numbers, numbers, read_parquet
from alloop.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

NARROW = ("image_id", "sha256", "predicted", "confidence", "ood")  # besides scores by the names of strategies
WIDE = ("log_probs", "members", "both")


@dataclasses.dataclass(frozen=True)
class Scores:
    """Narrow columns of a score file [N], in the order of the file.

    Attributes:
        predicted: Labels that the model guesses; for a classification, names of classes.
        entropy: Predictive entropies, in nats.
        confidence: Certainty in [0, 1]; for a classification, 1 - entropy / ln K.
        uncertainty: Strategy → scores [N], higher is more uncertain. Scores of several members need several members.
        ood: OOD scores [N], higher means less like the training images.
        has_members: True if the file has a column with the predictions of every member.
        features_sha256: Checksum of the file of features next to the scores; None without such a file.
    """

    image_ids: npt.NDArray[np.int64]
    sha256s: list[str]
    predicted: list[str]
    entropy: npt.NDArray[np.float32]
    confidence: npt.NDArray[np.float32]
    uncertainty: dict[str, npt.NDArray[np.float32]]
    ood: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    model_sha256: str
    temperature: float
    has_members: bool = False
    features_sha256: str | None = None


def read_scores(path: Path) -> Scores:
    """Read all narrow columns of a score file.

    Raises:
        ModelError: The file is missing or damaged.
    """
    with _opened(path) as file:
        names = file.schema_arrow.names
        narrow = [name for name in names if name not in WIDE]
        table = file.read(columns=narrow)
        metadata = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
    return Scores(
        image_ids=numbers(table["image_id"]),
        sha256s=table["sha256"].to_pylist(),
        predicted=table["predicted"].to_pylist(),
        entropy=numbers(table["entropy"]),
        confidence=numbers(table["confidence"]),
        ood=numbers(table["ood"]),
        uncertainty={name: numbers(table[name]) for name in narrow if name not in NARROW},
        classes=tuple(json.loads(metadata["alloop.classes"])),
        model_sha256=metadata["alloop.model_sha256"],
        temperature=float(metadata["alloop.temperature"]),
        has_members="members" in names,
        features_sha256=metadata.get("alloop.features_sha256"),
    )


def read_ood(path: Path) -> tuple[npt.NDArray[np.float32], str]:
    """Read OOD scores [N], and the checksum of the model that gave them.

    Raises:
        ModelError: The file is missing or damaged.
    """
    with _opened(path) as file:
        ood = numbers(file.read(columns=["ood"])["ood"])
        return ood, file.metadata.metadata[b"alloop.model_sha256"].decode()


def read_predicted(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.object_]]:
    """Read image ids [N] and the names of the predicted classes [N].

    Raises:
        ModelError: The file is missing or damaged.
    """
    with _opened(path) as file:
        table = file.read(columns=["image_id", "predicted"])
    return numbers(table["image_id"]), np.array(table["predicted"].to_pylist(), dtype=object)


def read_rows(path: Path, column: str, image_ids: npt.NDArray[np.int64]) -> "Tensor":
    """Return `read_matrix` as a tensor."""
    import torch

    return torch.from_numpy(read_matrix(path, column, image_ids))


def read_matrix(path: Path, column: str, image_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Read a wide column, `log_probs` [n, K] or `members` [n, M * K], of images in the order given.

    The memory is that of the result and of one row group.

    Raises:
        ModelError: The file is damaged, has no such column, or lacks one of the images.
    """
    order = np.argsort(image_ids, kind="stable")
    wanted = image_ids[order]
    n_found = 0
    with _opened(path) as file:
        if column not in file.schema_arrow.names:
            raise ModelError(f"The scores in {path} have no {column}.", "Score again with `alloop score`.")
        width = file.schema_arrow.field(column).type.list_size
        rows = np.empty((len(image_ids), width), dtype=np.float32)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["image_id", column])
            ids = numbers(table["image_id"])
            places = np.searchsorted(wanted, ids)
            here = np.flatnonzero((places < len(wanted)) & (wanted[np.minimum(places, len(wanted) - 1)] == ids))
            rows[order[places[here]]] = flat_numbers(table[column]).reshape(-1, width)[here]
            n_found += len(here)
    if n_found < len(image_ids):
        raise ModelError(
            f"The scores in {path} lack {len(image_ids) - n_found} of {len(image_ids)} images.",
            "Score again with `alloop score`.",
        )
    return rows


def read_log_probs(path: Path) -> Iterator[tuple[npt.NDArray[np.int64], "Tensor"]]:
    """Yield `each_log_probs` with tensors, which may be changed."""
    import torch

    for image_ids, rows in each_log_probs(path):
        yield image_ids, torch.from_numpy(rows.copy())


def each_log_probs(path: Path) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Yield image ids [B] and log p̄ [B, K], one row group at a time.

    Of a model with smoothed heads that was scored without its calibrator, log p̄ is [B, 2, K] by raw and smoothed heads.
    """
    with _opened(path) as file:
        is_double = "both" in file.schema_arrow.names
        name = "both" if is_double else "log_probs"
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["image_id", name])
            shape = (table.num_rows, 2, -1) if is_double else (table.num_rows, -1)
            yield numbers(table["image_id"]), flat_numbers(table[name]).reshape(shape)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with read_parquet(path) as file:
            yield file
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The scores in {path} cannot be read: {error}.", "Score again with `alloop score`."
        ) from error
