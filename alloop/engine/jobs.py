"""Jobs that the loop hands to an executor, and their results: picklable, no open handles, no rows.

Imports no torch; a job loads the function that does its work when it runs.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alloop.engine.settings import EngineSettings
from alloop.engine.targets import Target
from alloop.progress import Progress, silent
from alloop.records import Calibration, ImageRef, ModelFiles


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """Train one model version and calibrate it.

    Attributes:
        classes: Names in the order of the model's outputs [K].
        images, targets: The training images and what the model shall learn of them, as `engine.targets` encodes it. The
            order does not matter: the job sorts by content hash.
        holdout, holdout_targets: Labeled holdout images; they fit the temperature and are measured on, nothing else.
        head_classes: Class names that are the specialty of each head in the previous model version, to be kept when
            classes are added; empty for the first.
        is_test: The holdout is a test set: it is measured on, and the calibrator is cross-validated on the training
            labels.
        pool: Images that may teach the model without labels, near copies once. Empty: only labels teach.
        pool_before: Folder of the model version before, whose graph of the pool is kept if it still fits.
        is_kept: False for a model that is only measured: it gets no distilled head and no out-of-fold predictions.
        out: Folder that the model version is written to, as a whole or not at all.
        device: Device instead of [model] device; None leaves it.
    """

    settings: EngineSettings
    classes: tuple[str, ...]
    images: tuple[ImageRef, ...]
    targets: tuple[Target, ...]
    holdout: tuple[ImageRef, ...]
    holdout_targets: tuple[Target, ...]
    seed: int
    cache: Path
    out: Path
    device: str | None = None
    head_classes: tuple[tuple[str, ...], ...] = ()
    is_test: bool = False
    pool: tuple[ImageRef, ...] = ()
    pool_before: Path | None = None
    is_kept: bool = True

    def run(self, progress: Progress = silent) -> "TrainResult":
        from alloop.engine.train import run_train

        return run_train(self, progress)

    def list_unlabeled(self) -> list[ImageRef]:
        """List the images that teach in fine-tuning without a label, by key: those of the pool without a label here."""
        if not self.settings.train.learns_unlabeled(self.settings.model):
            return []
        known = {ref.key for ref in self.images}
        return sorted((ref for ref in self.pool if ref.key not in known), key=lambda ref: ref.key)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A model version on disk and what is known about it.

    Attributes:
        calibration: Calibrator for scoring, fitted to the whole labeled holdout.
        holdout_calibrated_log_probs: Calibrated log p̄ of the labeled holdout [N, K], float32, in the job's order.
            Cross-fitted: no image was calibrated by itself. No rows without a holdout, or for images in `failed`.
        history: Losses of every epoch and decisions, JSON-able, for the record.
        seconds: Wall time.
        holdout_pooled_log_probs: The same rows before calibration, [N, K], or [N, 2, K] of raw and smoothed heads.
        failed: Training and holdout images that took no part, because they could not be read, with the reasons.
        out_of_fold: Predictions of the training images by heads that did not learn their labels; None without them.
    """

    files: ModelFiles
    calibration: Calibration
    holdout_calibrated_log_probs: npt.NDArray[np.float32]
    head_classes: tuple[tuple[str, ...], ...]
    library_versions: dict[str, str]
    history: dict[str, object]
    seconds: float
    failed: tuple[tuple[int, str], ...] = ()
    holdout_pooled_log_probs: npt.NDArray[np.float32] | None = None
    out_of_fold: "OutOfFold | None" = None


@dataclasses.dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions of training images, each by a head that learned the labels of the other folds only.

    Attributes:
        image_ids: Images [N].
        log_probs: Log-probabilities [N, K], float32, with one temperature that was fitted to all of them.
    """

    image_ids: tuple[int, ...]
    log_probs: npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class ScoreJob:
    """Score images with a model version, streamed to a columnar file.

    Attributes:
        model: A model version; its checksum is verified before use.
        out: Parquet file: image_id int64, sha256 string, predicted string, entropy float32 (nats), confidence float32
            (1 - entropy / ln K), log_probs fixed-size list<float32>[K] (calibrated log p̄), ood float32 (higher is more
            unlike the training images), and a float32 column for each other strategy, named like it; in the order of
            `images`. The classes, the model's sha256 and the temperature are in the file's metadata.
        is_calibrated: False leaves the calibrator out: log_probs and everything computed from them are uncalibrated. Of
            a model with smoothed heads, log_probs are theirs, and there is a column `both`, fixed-size list<float32>
            [2 * K]: log p̄ of raw and smoothed heads.
        keep_members: Adds a column `members`, fixed-size list<float32>[M * K]: uncalibrated predictions of all members.
        features_out: File for the features of `images` and `labeled` by the trained trunk, in an ensemble by that of
            the first network. Nothing is written if this is None or the trunk is published: the cache has them then.
        labeled: Training images, for `features_out` only.
        pool: Images among which those of the model's graph are. They are read only if the cache lost the graph and its
            features.
    """

    settings: EngineSettings
    model: ModelFiles
    images: tuple[ImageRef, ...]
    cache: Path
    out: Path
    device: str | None = None
    is_calibrated: bool = True
    keep_members: bool = False
    features_out: Path | None = None
    labeled: tuple[ImageRef, ...] = ()
    pool: tuple[ImageRef, ...] = ()

    def run(self, progress: Progress = silent) -> "ScoreResult":
        from alloop.engine.score import run_score

        return run_score(self, progress)


@dataclasses.dataclass(frozen=True)
class ScoreResult:
    """A written score file and its checksum. `failed` are the images that could not be read, with the reasons."""

    path: Path
    sha256: str
    n_images: int
    seconds: float
    failed: tuple[tuple[int, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class FeatureJob:
    """Get features of images by the published trunk that [model] names. Those that the cache lacks are computed."""

    settings: EngineSettings
    images: tuple[ImageRef, ...]
    cache: Path
    device: str | None = None

    def run(self, progress: Progress = silent) -> "FeatureResult":
        from alloop.engine.features import run_features

        return run_features(self, progress)


@dataclasses.dataclass(frozen=True)
class FeatureResult:
    """Features [N, D] and ids of the images that could be read, in the order of the job."""

    image_ids: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]
    failed: tuple[tuple[int, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class ExportJob:
    """Write a model version to a folder that other programs can use.

    Attributes:
        model: A model version; its checksum is verified before use.
        images: Images of the pool that the exported files are checked on.
        out: Folder, new or empty, that appears as a whole or not at all.
        card: Text of the model card, to which the results of the check are added.
        is_distilled: True for the distilled head in place of all heads: a small file without the graph of the pool.
        pool: Images among which those of the model's graph are, as in a ScoreJob.
    """

    settings: EngineSettings
    model: ModelFiles
    images: tuple[ImageRef, ...]
    cache: Path
    out: Path
    card: str
    is_distilled: bool = False
    pool: tuple[ImageRef, ...] = ()

    def run(self, progress: Progress = silent) -> "ExportResult":
        from alloop.engine.export import run_export

        return run_export(self, progress)


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """An exported folder.

    Attributes:
        names: Model files in it.
        gaps: Model file → largest difference in probability from alloop's own prediction.
        n_images: Number of images it was checked on.
    """

    folder: Path
    names: tuple[str, ...]
    gaps: Mapping[str, float]
    n_images: int
