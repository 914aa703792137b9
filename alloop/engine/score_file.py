"""Scores of a pool in a columnar file: written in row groups, read by column."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from alloop.acquisition.rows import TASKS as RULES
from alloop.acquisition.rows import image_scores
from alloop.acquisition.scores import SCORES
from alloop.composition import STRATEGIES, Need
from alloop.engine.model_files import ModelVersion
from alloop.engine.predictions import Predictions
from alloop.errors import ModelError
from alloop.files import explain_os_error

GROUP_VALUES = 4_000_000  # probabilities in a row group, which a writer or reader holds in memory


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


class ScoreWriter:
    """Writes predictions as they come. A row group is on disk before the next one is collected."""

    def __init__(
        self,
        path: Path,
        version: ModelVersion,
        model_sha256: str,
        task: str,
        *,
        keep_members: bool = False,
        keep_both: bool = False,
    ) -> None:
        """`keep_both` adds the uncalibrated predictions by raw and smoothed heads."""
        self._path = path
        self._rule = RULES[task]
        n_members = version.n_members
        self._n_kept = n_members if keep_members else 0
        self._keeps_both = keep_both
        self._rows = max(1, GROUP_VALUES // (len(version.classes) * (1 + self._n_kept)))
        self._pending: list[pa.RecordBatch] = []
        self._n_pending = 0
        metadata = {
            "alloop.classes": json.dumps(list(version.classes)),
            "alloop.model_sha256": model_sha256,
            "alloop.temperature": repr(version.calibration.temperature),
        }
        possible = [name for name in SCORES if n_members > 1 or not STRATEGIES[name].of_several]
        self._names = tuple(name for name in possible if name != "entropy")  # its column comes first
        self._schema = _schema(len(version.classes), self._names, self._n_kept, keep_both).with_metadata(metadata)

    def __enter__(self) -> "ScoreWriter":
        try:
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        except OSError as error:
            raise explain_os_error(error, self._path) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, predictions: Predictions) -> None:
        """Add the images of a batch with their calibrated predictions, uncertainties and OOD scores."""
        images, log_probs = predictions.images, predictions.calibrated_log_probs
        if not images:
            return
        n_classes, alone = log_probs.shape[1], log_probs.unsqueeze(0)
        entropy, members, both = predictions.entropy, predictions.member_log_probs, predictions.uncalibrated_log_probs
        assert members is not None and both is not None and predictions.ood is not None
        others = (
            image_scores(
                self._rule,
                SCORES[name].function,
                members if Need.MEMBER_LOG_PROBS in STRATEGIES[name].needs else alone,
            ).float()
            for name in self._names
        )
        columns = [
            pa.array([image.image_id for image in images], pa.int64()),
            pa.array([image.sha256 for image in images], pa.string()),
            pa.array(predictions.guesses, pa.string()),
            pa.array(entropy.numpy()),
            pa.array(self._rule.certainty(entropy, n_classes).numpy()),
            pa.FixedSizeListArray.from_arrays(pa.array(log_probs.numpy().reshape(-1)), n_classes),
            pa.array(predictions.ood.numpy()),
            *(pa.array(values.numpy()) for values in others),
        ]
        if self._n_kept:
            said = members.float().transpose(0, 1).reshape(-1).numpy()
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(said), self._n_kept * n_classes))
        if self._keeps_both:
            said = both.float().reshape(-1).numpy()
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(said), 2 * n_classes))
        self._pending.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._n_pending += len(images)
        if self._n_pending >= self._rows:
            self._flush()

    def set_features(self, sha256: str) -> None:
        """Record the checksum of the file of features that belongs to these scores."""
        self._writer.add_key_value_metadata({"alloop.features_sha256": sha256})

    def _flush(self) -> None:
        if self._pending:
            table = pa.Table.from_batches(self._pending, schema=self._schema)
            self._writer.write_table(table, row_group_size=self._rows)
        self._pending, self._n_pending = [], 0


def read_scores(path: Path) -> Scores:
    """Read all narrow columns of a score file.

    Raises:
        ModelError: The file is missing or damaged.
    """
    with _opened(path) as file:
        names = file.schema_arrow.names
        narrow = [name for name in names if name not in ("log_probs", "members", "both")]
        table = file.read(columns=narrow)
        metadata = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
    return Scores(
        image_ids=table["image_id"].to_numpy(),
        sha256s=table["sha256"].to_pylist(),
        predicted=table["predicted"].to_pylist(),
        entropy=table["entropy"].to_numpy(),
        confidence=table["confidence"].to_numpy(),
        ood=table["ood"].to_numpy(),
        uncertainty={name: table[name].to_numpy() for name in SCORES if name in narrow},
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
        ood = file.read(columns=["ood"])["ood"].to_numpy()
        return ood, file.metadata.metadata[b"alloop.model_sha256"].decode()


def read_predicted(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.object_]]:
    """Read image ids [N] and the names of the predicted classes [N].

    Raises:
        ModelError: The file is missing or damaged.
    """
    with _opened(path) as file:
        table = file.read(columns=["image_id", "predicted"])
    return table["image_id"].to_numpy(), np.array(table["predicted"].to_pylist(), dtype=object)


def read_rows(path: Path, column: str, image_ids: npt.NDArray[np.int64]) -> Tensor:
    """Read a wide column, `log_probs` [n, K] or `members` [n, M * K], of images in the order given, float32.

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
            ids = table["image_id"].to_numpy()
            places = np.searchsorted(wanted, ids)
            here = np.flatnonzero((places < len(wanted)) & (wanted[np.minimum(places, len(wanted) - 1)] == ids))
            values: Any = table[column].combine_chunks()
            rows[order[places[here]]] = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)[here]
            n_found += len(here)
    if n_found < len(image_ids):
        raise ModelError(
            f"The scores in {path} lack {len(image_ids) - n_found} of {len(image_ids)} images.",
            "Score again with `alloop score`.",
        )
    return torch.from_numpy(rows)


def read_log_probs(path: Path) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Yield image ids [B] and log p̄ [B, K], one row group at a time.

    Of a model with smoothed heads that was scored without its calibrator, log p̄ is [B, 2, K] by raw and smoothed heads.
    """
    with _opened(path) as file:
        is_double = "both" in file.schema_arrow.names
        name = "both" if is_double else "log_probs"
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["image_id", name])
            column: Any = table[name].combine_chunks()
            shape = (len(column), 2, -1) if is_double else (len(column), -1)
            rows = column.flatten().to_numpy(zero_copy_only=False).reshape(shape)
            yield table["image_id"].to_numpy(), torch.from_numpy(rows.copy())


def _schema(n_classes: int, uncertainties: Sequence[str], n_members: int, keep_both: bool) -> Any:
    said = [pa.field("members", pa.list_(pa.float32(), n_members * n_classes), nullable=False)] if n_members else []
    if keep_both:
        said.append(pa.field("both", pa.list_(pa.float32(), 2 * n_classes), nullable=False))
    return pa.schema(
        [
            pa.field("image_id", pa.int64(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("predicted", pa.string(), nullable=False),
            pa.field("entropy", pa.float32(), nullable=False),
            pa.field("confidence", pa.float32(), nullable=False),
            pa.field("log_probs", pa.list_(pa.float32(), n_classes), nullable=False),
            pa.field("ood", pa.float32(), nullable=False),
            *(pa.field(name, pa.float32(), nullable=False) for name in uncertainties),
            *said,
        ]
    )


def _opened(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ModelError(
            f"The scores in {path} cannot be read: {error}.", "Score again with `alloop score`."
        ) from error
