"""Scores of a round's pool, looked up by image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from alloop.config.schema import AcquisitionConfig
from alloop.engine.score_file import Scores, read_rows, read_scores
from alloop.errors import ModelError
from alloop.files import sha256_of
from alloop.project import Project
from alloop.store.rounds import RoundRecord, list_rounds

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "Score again with `alloop score`."


class PoolScores:
    """Scores of a round, looked up by image id.

    A column that was not stored raises an error when it is read, with the command that stores it.
    """

    def __init__(self, scores: Scores, settings: AcquisitionConfig, path: Path = Path("scores.parquet")) -> None:
        """`settings` say which images are suspect. `path` is the file with the wide columns."""
        self.scores = scores
        self._path = path
        self._order = np.argsort(scores.image_ids, kind="stable")
        self._sorted = scores.image_ids[self._order]
        self.suspects = find_suspects(scores, settings.suspect_quantile)

    def __contains__(self, image_id: int) -> bool:
        place = int(np.searchsorted(self._sorted, image_id))
        return place < len(self._sorted) and int(self._sorted[place]) == image_id

    def has(self, name: str) -> bool:
        """Return True if every image has this score of its own."""
        return name in self.scores.uncertainty

    def values(self, name: str, image_ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return scores [N] by the name of a strategy, in the order asked. Higher means ask sooner.

        Raises:
            ModelError: The file has no such scores, for example because the model has too few members.
        """
        if not self.has(name):
            raise ModelError(f"The scores of this round do not have {name}.", AGAIN)
        return self.scores.uncertainty[name][self.positions(image_ids)].astype(np.float64)

    def predicted(self, image_ids: Sequence[int]) -> list[str]:
        """Return the most probable class of each image."""
        return [self.scores.predicted[position] for position in self.positions(image_ids)]

    def guess(self, image_id: int) -> tuple[str, float]:
        """Return (predicted class, confidence in [0, 1]) of one image."""
        position = int(self.positions([image_id])[0])
        return self.scores.predicted[position], float(self.scores.confidence[position])

    def calibrated_log_probs(self, image_ids: Sequence[int]) -> "Tensor":
        """Read calibrated log p̄ [N, K]."""
        return read_rows(self._path, "log_probs", np.asarray(image_ids, dtype=np.int64))

    def member_log_probs(self, image_ids: Sequence[int], strategy: str) -> "Tensor":
        """Read the predictions of every member [M, N, K], uncalibrated.

        Raises:
            ModelError: The predictions of members were not kept.
        """
        if not self.scores.has_members:
            raise ModelError(
                f"The scores of this round do not have what {strategy} needs: every member's predictions.",
                f"Score again with `alloop score --strategy {strategy}`.",
            )
        rows = read_rows(self._path, "members", np.asarray(image_ids, dtype=np.int64))
        return rows.reshape(len(rows), -1, len(self.scores.classes)).permute(1, 0, 2)

    def features(
        self, image_ids: Sequence[int], strategy: str
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Read features [n, D] by the trained trunk, and a mask [N] of the images that have features.

        Raises:
            ModelError: The features were not kept, or are damaged.
        """
        from alloop.engine.trunk_file import read_trunk_features  # loads torch, and pages read scores only

        sha256 = self.scores.features_sha256
        if sha256 is None:
            raise ModelError(
                f"The scores of this round do not have what {strategy} needs: features of the trained trunk.",
                f"Score again with `alloop score --strategy {strategy}`.",
            )
        return read_trunk_features(features_beside(self._path), sha256, np.asarray(image_ids, dtype=np.int64))

    def positions(self, image_ids: Sequence[int]) -> npt.NDArray[np.intp]:
        """Return the rows of images in the file. All of the images must be there."""
        return self._order[np.searchsorted(self._sorted, np.asarray(image_ids, dtype=np.int64))]


def find_suspects(scores: Scores, quantile: float) -> frozenset[int]:
    """Return the images whose OOD score lies above the quantile of the pool: at most a share of 1 - quantile.

    The quantile is one of the scores (the smallest that at least this share of images does not exceed). A pool with
    equal scores, or with fewer than 1 / (1 - quantile) images, has no suspects.
    """
    bound = suspect_bound(scores.ood, quantile)
    return frozenset() if bound is None else frozenset(scores.image_ids[scores.ood > bound].tolist())


def suspect_bound(ood: npt.NDArray[np.floating], quantile: float) -> float | None:
    """Return the OOD score above which images are suspect; None for an empty pool."""
    return float(np.quantile(ood, quantile, method="inverted_cdf")) if len(ood) else None


def suspect_threshold(ood: npt.NDArray[np.floating], quantile: float) -> float | None:
    """Return a bound that tells the same images of the pool apart when they are predicted again, with other rounding.

    It lies in the middle between `suspect_bound` and the next score of the pool.
    """
    bound = suspect_bound(ood, quantile)
    if bound is None:
        return None
    above = ood[ood > bound]
    return bound + 1e-6 * max(1.0, abs(bound)) if not len(above) else (bound + float(above.min())) / 2


def load_scores(project: Project, current: RoundRecord, settings: AcquisitionConfig) -> PoolScores | None:
    """Return the scores of a round, or None if it has none.

    Raises:
        ModelError: The file is missing or damaged.
    """
    if current.scores_path is None or current.scores_sha256 is None:
        return None
    path = project.folder / current.scores_path
    if not path.exists() or sha256_of(path) != current.scores_sha256:
        raise ModelError(f"The scores in {path} are missing or damaged.", AGAIN)
    return PoolScores(read_scores(path), settings, path)


def find_newest_scores(session: Session, project: Project) -> tuple[int, PoolScores] | None:
    """Return the newest scores that can be read, with the number of their round; None if there are none."""
    for row in reversed(list_rounds(session)):
        try:
            scores = load_scores(project, row, project.config.acquisition)
        except ModelError:  # its files were deleted
            continue
        if scores is not None:
            return row.number, scores
    return None


def features_beside(scores: Path) -> Path:
    """Return the path of the features by a trained trunk."""
    return scores.with_name("features.npy")
