"""Score images with a model version, streamed to a columnar file."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from alloop.calibration.temperature import apply_temperature
from alloop.engine.build import build_backbone, build_hardware, search_paths
from alloop.engine.features import ensure_features, trunk_batches
from alloop.engine.jobs import ScoreJob, ScoreResult
from alloop.engine.model_files import ModelVersion, load_model
from alloop.engine.score_file import ScoreWriter
from alloop.errors import ModelError
from alloop.files import atomic_path, sha256_of
from alloop.models.backbones import Backbone
from alloop.predictive import mean_log_probs
from alloop.progress import Progress, silent
from alloop.records import ImageRef

CHUNK = 4096  # images whose features are in memory at once


def run_score(job: ScoreJob, progress: Progress = silent) -> ScoreResult:
    """Write calibrated predictions and entropies of images; memory is O(batch).

    Images that cannot be read now are left out of the file and named in the result.

    Raises:
        ModelError: The model version is damaged, or was trained on another backbone.
        WorkspaceError: The disk is full; an earlier file stays as it was.
    """
    started = time.perf_counter()
    version = load_model(job.model)
    failed: list[tuple[int, str]] = []
    with atomic_path(job.out) as temporary, ScoreWriter(temporary, version, job.model.sha256) as writer:
        done = 0
        for images, features in _features(job, version, failed, progress):
            log_probs = predict(version, features)
            writer.write(images, log_probs)
            done += len(images)
            progress("score", done, len(job.images) - len(failed))
    return ScoreResult(
        path=job.out,
        sha256=sha256_of(job.out),
        n_images=done,
        seconds=time.perf_counter() - started,
        failed=tuple(failed),
    )


def predict(version: ModelVersion, features: Tensor) -> Tensor:
    """Features [B, D] to calibrated log p̄ [B, K], float32."""
    with torch.inference_mode():
        pooled = mean_log_probs(version.loss.log_probs(version.heads(features)))
        return apply_temperature(pooled.double(), version.calibration.temperature).float()


def _features(
    job: ScoreJob, version: ModelVersion, failed: list[tuple[int, str]], progress: Progress
) -> Iterator[tuple[Sequence[ImageRef], Tensor]]:
    """Images and their features [B, D], in the job's order; what fails is added to `failed`."""
    hardware = build_hardware(job.config, job.device)
    backbone = build_backbone(job.config, search_paths(job.cache))
    _check_backbone(job, version, backbone)
    if version.trunk:
        backbone.module.load_state_dict(dict(version.trunk))
        for _, refs, batch, rows in trunk_batches(job.images, backbone, hardware):
            failed += batch.failed
            yield [refs[position] for position in batch.positions.tolist()], rows
        return
    cache, unreadable = ensure_features(job.images, backbone, job.cache, hardware, progress)
    failed += unreadable
    gone = {image_id for image_id, _ in failed}
    images = [image for image in job.images if image.image_id not in gone]
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        yield chunk, torch.from_numpy(cache.take([image.sha256 for image in chunk]))


def _check_backbone(job: ScoreJob, version: ModelVersion, backbone: Backbone) -> None:
    trained_on, now = dict(version.metadata["backbone"]), backbone.fingerprint()
    if version.trunk:  # its own weights replace those that the name stands for
        del trained_on["weights"], now["weights"]
    if trained_on != now:
        raise ModelError(
            f"The model in {job.model.folder} was trained on another backbone, other weights or another image size.",
            "Train it again with `alloop train`.",
        )
