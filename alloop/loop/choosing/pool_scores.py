"""The scores of a round's pool, looked up by image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alloop.config.schema import AcquisitionConfig
from alloop.engine.score_file import Scores, read_rows, read_scores
from alloop.engine.trunk_file import read_trunk_features
from alloop.errors import ModelError
from alloop.files import sha256_of
from alloop.project import Project
from alloop.store.rounds import RoundRecord

AGAIN = "Score again with `alloop score`."


class PoolScores:
    """The scores of a round by image id, whatever order the file has.

    Columns that an older file lacks, or that were not kept, are refused when they are asked for, with the way out.
    """

    def __init__(self, scores: Scores, settings: AcquisitionConfig, path: Path = Path("scores.parquet")) -> None:
        """The settings say what is suspect; `path` is where the wide columns are."""
        self.scores = scores
        self._path = path
        self._order = np.argsort(scores.image_ids, kind="stable")
        self._sorted = scores.image_ids[self._order]
        self.suspects = find_suspects(scores, settings.suspect_quantile)

    def __contains__(self, image_id: int) -> bool:
        place = int(np.searchsorted(self._sorted, image_id))
        return place < len(self._sorted) and int(self._sorted[place]) == image_id

    def has(self, name: str) -> bool:
        """Return whether the file holds this score."""
        return name in self.scores.uncertainty

    def values(self, name: str, image_ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """Scores [N] by the name of a strategy, in the order asked; higher means ask sooner.

        Raises:
            ModelError: They were made by an alloop that did not know the strategy, or for a model with fewer members.
        """
        if not self.has(name):
            raise ModelError(f"The scores of this round do not have {name}.", AGAIN)
        return self.scores.uncertainty[name][self.positions(image_ids)].astype(np.float64)

    def predicted(self, image_ids: Sequence[int]) -> list[str]:
        """The most probable class of each."""
        return [self.scores.predicted[position] for position in self.positions(image_ids)]

    def guess(self, image_id: int) -> tuple[str, float]:
        """(predicted class, confidence in [0, 1]) of one image."""
        position = int(self.positions([image_id])[0])
        return self.scores.predicted[position], float(self.scores.confidence[position])

    def calibrated_log_probs(self, image_ids: Sequence[int]) -> Tensor:
        """Calibrated log p̄ [N, K]."""
        return read_rows(self._path, "log_probs", np.asarray(image_ids, dtype=np.int64))

    def member_log_probs(self, image_ids: Sequence[int], strategy: str) -> Tensor:
        """Read the predictions of every member [M, N, K], uncalibrated.

        Raises:
            ModelError: It was not kept.
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
        """Features [n, D] by the trained trunk of those images that have some, and which these are [N].

        Raises:
            ModelError: They were not kept, or are damaged.
        """
        sha256 = self.scores.features_sha256
        if sha256 is None:
            raise ModelError(
                f"The scores of this round do not have what {strategy} needs: features of the trained trunk.",
                f"Score again with `alloop score --strategy {strategy}`.",
            )
        return read_trunk_features(features_beside(self._path), sha256, np.asarray(image_ids, dtype=np.int64))

    def positions(self, image_ids: Sequence[int]) -> npt.NDArray[np.intp]:
        """Rows of images in the file; all of them must be there."""
        return self._order[np.searchsorted(self._sorted, np.asarray(image_ids, dtype=np.int64))]


def find_suspects(scores: Scores, quantile: float) -> frozenset[int]:
    """Images whose OOD score lies above the pool's quantile: at most 1 - quantile of them, none where scores are equal.

    The quantile is one of the scores themselves (the smallest that at least that share does not exceed), so that in a
    pool of fewer than 1 / (1 - quantile) images there is no suspect.
    """
    if scores.ood is None or not len(scores.ood):
        return frozenset()
    bound = np.quantile(scores.ood, quantile, method="inverted_cdf")
    return frozenset(scores.image_ids[scores.ood > bound].tolist())


def load_scores(project: Project, current: RoundRecord, settings: AcquisitionConfig) -> PoolScores | None:
    """The scores of a round, or None where it has none.

    Raises:
        ModelError: The file is missing or damaged.
    """
    if current.scores_path is None or current.scores_sha256 is None:
        return None
    path = project.folder / current.scores_path
    if not path.exists() or sha256_of(path) != current.scores_sha256:
        raise ModelError(f"The scores in {path} are missing or damaged.", AGAIN)
    return PoolScores(read_scores(path), settings, path)


def features_beside(scores: Path) -> Path:
    """Return the path of the features of a trained trunk."""
    return scores.with_name("features.npy")
