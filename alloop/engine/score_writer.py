"""Scores of a pool, written to a columnar file in row groups; `score_file` reads it."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from alloop.acquisition.rows import TASKS as RULES
from alloop.acquisition.rows import image_scores
from alloop.acquisition.scores import SCORES
from alloop.columns import lists_of, write_parquet
from alloop.composition import STRATEGIES, Need
from alloop.engine.model_files import ModelVersion
from alloop.engine.predictions import Predictions
from alloop.files import explain_os_error

GROUP_VALUES = 4_000_000  # probabilities in a row group, which a writer or reader holds in memory


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
            self._writer = write_parquet(self._path, self._schema)
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
            lists_of(log_probs.numpy(), n_classes),
            pa.array(predictions.ood.numpy()),
            *(pa.array(values.numpy()) for values in others),
        ]
        if self._n_kept:
            columns.append(lists_of(members.float().transpose(0, 1).numpy(), self._n_kept * n_classes))
        if self._keeps_both:
            columns.append(lists_of(both.float().numpy(), 2 * n_classes))
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
