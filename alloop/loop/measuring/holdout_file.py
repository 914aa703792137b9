"""Predictions for labeled images by models that did not learn their labels, stored next to a round's model.

Those for the holdout let models be compared image by image. Those for the training images are out-of-fold.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alloop.columns import flat_numbers, lists_of, read_parquet, write_parquet
from alloop.engine.targets import Coding, Target
from alloop.files import atomic_path
from alloop.records import ImageRef


@dataclasses.dataclass(frozen=True, eq=False)
class HoldoutPredictions:
    """Rows of a file [N], in the order of the file.

    Attributes:
        targets: Class by people's answers when the file was written.
        predicted: Class that the model predicts.
        grown: True if the image was drawn in a later round.
        calibrated_log_probs: Predictions [N, K], each image by a calibrator that was fitted without it; None if not
            read.
        plain_log_probs: The same before calibration [N, K]; None if not read, or if an older alloop wrote the file.
    """

    sha256s: tuple[str, ...]
    targets: tuple[str, ...]
    predicted: tuple[str, ...]
    grown: npt.NDArray[np.bool_]
    classes: tuple[str, ...]
    calibrated_log_probs: npt.NDArray[np.float32] | None
    plain_log_probs: npt.NDArray[np.float32] | None = None

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        return np.array([p == t for p, t in zip(self.predicted, self.targets, strict=True)], dtype=bool)


def write_holdout(
    path: Path,
    refs: Sequence[ImageRef],
    targets: Sequence[Target],
    grown: Sequence[bool],
    calibrated_log_probs: npt.NDArray[np.floating],
    coding: Coding,
    model_sha256: str,
    plain_log_probs: npt.NDArray[np.floating] | None = None,
) -> None:
    """Write the file as a whole.

    Args:
        path: Place of the file.
        refs: Images [N].
        targets: Targets [N].
        grown: True for images that were drawn in a later round [N].
        calibrated_log_probs: Predictions [N, K], each image by a calibrator that was fitted without it.
        coding: Translates targets and predictions into labels.
        model_sha256: Checksum of the model.
        plain_log_probs: Predictions before calibration [N, K].

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    import pyarrow as pa

    classes = coding.classes
    plain = {} if plain_log_probs is None else {"plain_log_probs": lists_of(plain_log_probs, len(classes))}
    table = pa.table(
        {
            "image_id": pa.array([ref.image_id for ref in refs], pa.int64()),
            "sha256": pa.array([ref.sha256 for ref in refs], pa.string()),
            "target": pa.array([coding.decode(target) for target in targets], pa.string()),
            "predicted": pa.array(coding.guess(calibrated_log_probs), pa.string()),
            "grown": pa.array(list(grown), pa.bool_()),
            "log_probs": lists_of(calibrated_log_probs, len(classes)),
            **plain,
        }
    ).replace_schema_metadata({"alloop.classes": json.dumps(list(classes)), "alloop.model_sha256": model_sha256})
    with atomic_path(path) as temporary, write_parquet(temporary, table.schema) as writer:
        writer.write_table(table)


def read_holdout(path: Path, model_sha256: str, *, whole: bool = False) -> HoldoutPredictions | None:
    """Read the file of a model; None if the file is missing, damaged, or of another model.

    Args:
        path: Place of the file.
        model_sha256: Checksum of the model.
        whole: True to read log-probabilities, too.
    """
    needed = ["sha256", "target", "predicted", "grown"] + (["log_probs"] if whole else [])
    try:
        with read_parquet(path) as file:
            table = file.read(columns=[*needed, *(["plain_log_probs"] if whole else [])])
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if metadata["alloop.model_sha256"] != model_sha256:
            return None
        classes = tuple(json.loads(metadata["alloop.classes"]))
    except (OSError, ValueError, KeyError, NotImplementedError):
        return None
    if not set(needed) <= set(table.column_names):
        return None

    def matrix(name: str) -> npt.NDArray[np.float32] | None:
        if name not in table.column_names:
            return None
        return flat_numbers(table[name]).reshape(table.num_rows, len(classes))

    return HoldoutPredictions(
        sha256s=tuple(table["sha256"].to_pylist()),
        targets=tuple(table["target"].to_pylist()),
        predicted=tuple(table["predicted"].to_pylist()),
        grown=np.array(table["grown"].to_pylist(), dtype=bool),
        classes=classes,
        calibrated_log_probs=matrix("log_probs"),
        plain_log_probs=matrix("plain_log_probs"),
    )
