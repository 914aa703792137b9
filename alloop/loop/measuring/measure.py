"""Measurement of holdout predictions, also again when more of the holdout is labeled."""

import dataclasses
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch

from alloop.calibration.calibrator import plain
from alloop.config.load import validate_config
from alloop.engine.calibrate import apply_calibration, calibrate
from alloop.engine.jobs import TrainJob, TrainResult
from alloop.engine.score_file import read_log_probs
from alloop.engine.targets import TASKS as CODINGS
from alloop.engine.targets import Coding, encode_known
from alloop.errors import LabelError, ModelError
from alloop.evaluation.measures import TASKS as MEASURES
from alloop.evaluation.measures import Measures
from alloop.loop.intake.reach import require_reachable
from alloop.loop.measuring.findings import GROWN
from alloop.loop.measuring.holdout_file import write_holdout
from alloop.loop.measuring.pool_brings import RAW_HEADS, SMOOTHED_HEADS
from alloop.loop.uncalibrated import scored_apart
from alloop.loop.workbench import Workbench
from alloop.project import Project
from alloop.records import ImageRef, Interval, Split
from alloop.seeds import derive_seed
from alloop.store.annotations import list_labels
from alloop.store.holdout import list_grown
from alloop.store.images import find_refs
from alloop.store.rounds import ModelRecord, find_last_model, find_round_number, set_metrics
from alloop.store.session import reading, transaction
from alloop.store.workspace import add_event


@dataclasses.dataclass(frozen=True, eq=False)
class HoldoutRows:
    """Labeled holdout images [N] and a model's predictions of them.

    Attributes:
        targets: Class positions [N].
        grown: True for images that a later round drew [N].
        calibrated_log_probs: Calibrated log p̄ [N, K], cross-fitted.
        pooled_log_probs: The same before calibration; [N, 2, K] by raw and smoothed heads of a model that has both.
    """

    refs: tuple[ImageRef, ...]
    targets: npt.NDArray[np.int64]
    grown: npt.NDArray[np.bool_]
    calibrated_log_probs: npt.NDArray[np.floating]
    pooled_log_probs: npt.NDArray[np.floating]


def rows_of(job: TrainJob, result: TrainResult, grown: Collection[int]) -> HoldoutRows | None:
    """Return the readable holdout images with their predictions; None without any."""
    failed = {image_id for image_id, _ in result.failed}
    pairs = zip(job.holdout, job.holdout_targets, strict=True)
    kept = [(ref, target) for ref, target in pairs if ref.image_id not in failed]
    if not kept or result.holdout_pooled_log_probs is None:
        return None
    return HoldoutRows(
        refs=tuple(ref for ref, _ in kept),
        targets=np.array([target for _, target in kept], dtype=np.int64),
        grown=np.array([ref.image_id in grown for ref, _ in kept], dtype=bool),
        calibrated_log_probs=result.holdout_calibrated_log_probs,
        pooled_log_probs=result.holdout_pooled_log_probs,
    )


def record_holdout(
    project: Project,
    number: int,
    model_sha256: str,
    coding: Coding,
    rows: HoldoutRows,
    seed: int,
) -> dict[str, dict[str, Interval]]:
    """Write a model's predictions for the labeled holdout next to the model, and measure them.

    Returns:
        Split → metrics: `holdout` for the sample drawn before the first model, `grown` for images that later rounds
        drew from the rest of the pool. They represent different images and are never averaged (docs/evaluation.md).
        For a model with raw and smoothed heads also those of each kind alone, on the images of `holdout`.
    """
    refs, targets, grown, plain_log_probs = rows.refs, rows.targets, rows.grown, _plain(rows.pooled_log_probs)
    write_holdout(
        project.paths.holdout(number),
        refs,
        targets.tolist(),
        grown.tolist(),
        rows.calibrated_log_probs,
        coding,
        model_sha256,
        plain_log_probs,
    )
    measures, found = MEASURES[project.config.project.task], {}
    for split, mask in ((Split.HOLDOUT.value, ~grown), (GROWN, grown)):
        if mask.any():
            generator = np.random.default_rng(derive_seed(seed, "bootstrap"))
            found[split] = measures.measure(
                rows.calibrated_log_probs[mask], targets[mask], generator, plain_log_probs[mask]
            )
    if rows.pooled_log_probs.ndim == 3 and not grown.all():
        is_test = project.config.evaluation.test is not None
        found |= measure_heads(rows.pooled_log_probs[~grown], targets[~grown], measures, seed, is_test=is_test)
    return found


def record_out_of_fold(project: Project, number: int, job: TrainJob, result: TrainResult, coding: Coding) -> None:
    """Write a model's out-of-fold predictions for its training images next to the model, if it has any."""
    found = result.out_of_fold
    if found is None:
        return
    pairs = {ref.image_id: (ref, target) for ref, target in zip(job.images, job.targets, strict=True)}
    refs, targets = zip(*(pairs[image_id] for image_id in found.image_ids), strict=True)
    path, grown = project.paths.out_of_fold(number), [False] * len(refs)
    write_holdout(path, refs, targets, grown, found.log_probs, coding, result.files.sha256)


def measure_heads(
    both_log_probs: npt.NDArray[np.floating],
    targets: npt.NDArray[np.int64],
    measures: Measures,
    seed: int,
    *,
    is_test: bool,
) -> dict[str, dict[str, Interval]]:
    """Measure raw and smoothed heads alone, each at a temperature of its own, to see what smoothing brings.

    Args:
        both_log_probs: Uncalibrated log p̄ [N, 2, K] of labeled holdout images by raw and smoothed heads.
        targets: Class positions [N].
        measures: Measures of the task.
        seed: Seed of the model version.
        is_test: True to leave the temperature out, because nothing is fitted to a test set.
    """
    found = {}
    for position, name in enumerate((RAW_HEADS, SMOOTHED_HEADS)):
        alone = torch.from_numpy(both_log_probs[:, position])
        method = "none" if is_test else "temperature"
        calibrated, _ = calibrate(method, alone, torch.from_numpy(targets), derive_seed(seed, "calibration"))
        generator = np.random.default_rng(derive_seed(seed, "bootstrap"))
        found[name] = measures.measure(calibrated.numpy(), targets, generator)
    return found


def _plain(log_probs: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return np.asarray(plain(torch.from_numpy(log_probs)))


def evaluate(bench: Workbench, device: str | None = None) -> tuple[str, dict[str, Interval]]:
    """Measure the newest model on the present holdout labels, each image calibrated by the others.

    The model keeps its stored calibrator; the measurement uses a calibrator fitted to the present labels. On a test
    set, to which nothing is fitted, the stored calibrator is measured.

    Returns:
        Name of the model and its metrics, which are recorded.

    Raises:
        ModelError: There is no model yet.
        LabelError: No holdout image has a label.
        SourceUnreachable: A large part of the pool is missing.
    """
    project = bench.project
    require_reachable(project)
    with reading(project.database) as session:
        model = find_last_model(session)
        labels = {label.image_id: label.consensus.value for label in list_labels(session, Split.HOLDOUT)}
        refs = find_refs(session, labels)
        grown = list_grown(session)
        number = None if model is None else find_round_number(session, model.round_id)
    if model is None or number is None:
        raise ModelError("There is no model yet.", "`alloop run` trains one as soon as two classes have labels.")
    coding = CODINGS[project.config.project.task](model.classes)
    usable = {image_id: ref for image_id, ref in refs.items() if coding.encode(labels[image_id]) is not None}
    if not usable:
        raise LabelError("No holdout image has a label yet.", "`alloop run` asks about them in round 0.")
    # In the order of the training, by content: folds and resamples are then the same.
    by_content = sorted(usable.values(), key=lambda ref: ref.sha256)
    pooled, order = _predict(bench, model, by_content, device)
    if not order:
        raise LabelError(
            f"None of the {len(usable)} labeled holdout images can be read.", "`alloop pool check` says why."
        )
    targets = coding.array(encode_known(coding, [labels[image_id] for image_id in order]))
    config = validate_config(model.config, f"the config of model {model.name}")
    if config.evaluation.test is not None:
        calibrated = apply_calibration(model.calibration, pooled)
    else:
        method, folds = config.calibration.method, derive_seed(model.seed, "calibration")
        calibrated, _ = calibrate(method, pooled, torch.from_numpy(targets), folds)
    rows = HoldoutRows(
        refs=tuple(usable[image_id] for image_id in order),
        targets=targets,
        grown=np.array([image_id in grown for image_id in order], dtype=bool),
        calibrated_log_probs=calibrated.numpy(),
        pooled_log_probs=pooled.numpy(),
    )
    metrics = record_holdout(project, number, model.sha256, coding, rows, model.seed)
    with transaction(project.database) as session:
        for split, found in metrics.items():
            set_metrics(session, model.id, split, found, bench.now())
        add_event(session, bench.user, "evaluated", bench.now(), model=model.name, images=len(order))
    return model.name, metrics.get(Split.HOLDOUT.value, {})


def _predict(
    bench: Workbench, model: ModelRecord, refs: list[ImageRef], device: str | None
) -> tuple[torch.Tensor, list[int]]:
    """Return uncalibrated log p̄ in float64, and the ids of the images that could be read, in that order.

    log p̄ is [N, K], or [N, 2, K] by raw and smoothed heads.
    """
    with scored_apart(bench, model, refs, device) as result:
        parts = list(read_log_probs(result.path))
    pooled = torch.cat([rows for _, rows in parts]).double() if parts else torch.empty(0, len(model.classes))
    return pooled, [int(image_id) for ids, _ in parts for image_id in ids]
