"""Score images with a model version, streamed to a columnar file."""

import time

from alloop.engine.classifier import Classifier
from alloop.engine.device import explained_shortage
from alloop.engine.jobs import ScoreJob, ScoreResult
from alloop.engine.score_writer import ScoreWriter
from alloop.engine.trunk_file import TrunkWriter
from alloop.files import atomic_path, sha256_of
from alloop.progress import Progress, silent


@explained_shortage()
def run_score(job: ScoreJob, progress: Progress = silent) -> ScoreResult:
    """Write calibrated predictions and uncertainties of images to a file; memory is O(batch).

    Images that cannot be read now are left out of the file and named in the result.

    Raises:
        ModelError: The model version is damaged, or was trained on another backbone.
        WorkspaceError: The disk is full; an earlier file stays as it was.
    """
    started = time.perf_counter()
    task = job.settings.task
    model = Classifier.open(
        job.model, job.settings, job.cache, job.device, is_calibrated=job.is_calibrated, pool=lambda: job.pool
    )
    features_out = job.features_out if model.has_own_trunk else None
    failed: list[tuple[int, str]] = []
    done = 0
    with (
        TrunkWriter(features_out, len(job.images) + len(job.labeled)) as trunk_rows,
        atomic_path(job.out) as temporary,
        ScoreWriter(
            temporary,
            model.version,
            job.model.sha256,
            task,
            keep_members=job.keep_members,
            keep_both=not job.is_calibrated and model.version.network.smoothed is not None,
        ) as writer,
    ):
        for predictions in model.predict(job.images, progress):
            failed += predictions.failed
            writer.write(predictions)
            assert predictions.features is not None
            trunk_rows.add(predictions.images, predictions.features)
            done += len(predictions.images)
            progress("score", done, len(job.images) - len(failed))
        if features_out is not None:
            for images, features in model.features(job.labeled):
                trunk_rows.add(images, features)
        if (checksum := trunk_rows.finish()) is not None:
            writer.set_features(checksum)
    return ScoreResult(
        path=job.out,
        sha256=sha256_of(job.out),
        n_images=done,
        seconds=time.perf_counter() - started,
        failed=tuple(failed),
    )
