"""Comparison of methods × seeds on the same labels. Each cell has a JSON file, so a kill loses only one cell.

Every model is trained without post-hoc calibration. Calibrators are fitted here, to images outside its training part.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alloop import __version__
from alloop.calibration.calibrator import plain, prepare
from alloop.calibration.choose import cross_fit, fit_calibrator, to_json
from alloop.config.load import validate_config
from alloop.config.schema import Config
from alloop.engine.classifier import Classifier
from alloop.engine.jobs import ScoreJob, ScoreResult, TrainJob, TrainResult
from alloop.engine.score_file import read_log_probs
from alloop.engine.settings import EngineSettings
from alloop.errors import ConfigError, LabelError, ModelError
from alloop.evaluation.intervals import DRAWS, bootstrap_all, statistics_of, wilson
from alloop.evaluation.metrics import Bins, accuracy, confidence_bins
from alloop.executor import Executor
from alloop.files import make_output_folder, write_json
from alloop.progress import Progress, silent
from alloop.records import ImageRef
from alloop.seeds import derive_seed
from alloop.simulate.cells import Deadline, digest_of, read_cell_file
from alloop.simulate.labeled import LabeledImages, Parts, split_holdout, split_stratified
from alloop.simulate.methods import Method, apply_method
from alloop.simulate.ood import OodScore, measure_strangers
from alloop.simulate.warming import compute_features, refuse_failed, time_trunk

RAW = "raw"  # stage before any calibrator
LAYOUT = 3  # layout of cell files; files of another layout are computed again
FINE_TUNING = 2  # version of the recipe of fine-tuning; cells of another one are computed again
SplitKind = Literal["stratified", "holdout"]


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """Settings of a comparison.

    Attributes:
        config: Settings of all methods, except those that define a method.
        seeds: Number of seeds. A seed decides the split and all randomness of training.
        calibrators: Names of [calibration] method; each is fitted to the same raw predictions.
        split: "holdout" measures on the workspace's holdout, "stratified" draws new parts for every seed.
        n_labels: Number of training images; None: all others.
        minutes: Time after which no cell is started; None: no limit.
        out: Folder of the results.
    """

    config: Config
    methods: tuple[Method, ...]
    seeds: int
    out: Path
    cache: Path
    calibrators: tuple[str, ...] = ("temperature",)
    split: SplitKind = "stratified"
    n_labels: int | None = None
    minutes: float | None = None
    device: str | None = None
    strangers: tuple[ImageRef, ...] = ()  # images of no class, for the scores of `simulate.ood`
    odin_images: int = 1000  # largest number of images of each kind for ODIN, which is slow; 0: without ODIN
    draws: int = DRAWS  # number of resamples of all bootstrap intervals


@dataclasses.dataclass(frozen=True)
class CellStage:
    """Measurements of predictions before or after a calibrator.

    Attributes:
        metrics: Values of accuracy, nll (nats), brier, ece, mce, adaptive_ece, classwise_ece.
        intervals: 95 % interval of each: name → (low, high); Wilson's for accuracy, bootstrap for the others.
        count, confidence, accuracy: Bins of a reliability diagram; None for empty bins.
        calibrator: Fitted calibrator with its evidence; None before calibration.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    count: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    calibrator: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class MethodCell:
    """Result of one method with one seed.

    Attributes:
        train_seconds: Wall time of training, without shared features.
        score_seconds: Wall time of scoring one image, with the trunk.
        stages: Measurements of "raw" and every calibrator on the same images.
        ood: Score → detection of strange images; empty without strange images.
    """

    method: str
    seed: int
    n_train: int
    n_calibration: int
    n_test: int
    train_seconds: float
    score_seconds: float
    stages: Mapping[str, CellStage]
    ood: Mapping[str, OodScore] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results of a comparison. `missing` cells were not started because time was up; `failed` cells have a reason."""

    methods: tuple[Method, ...]
    cells: tuple[MethodCell, ...]
    missing: tuple[tuple[str, int], ...] = ()
    failed: tuple[tuple[str, int, str], ...] = ()
    trained: int = 0


def compare(
    settings: CompareSettings,
    data: LabeledImages,
    executor: Executor,
    progress: Progress = silent,
    draw: Callable[[int], Parts] | None = None,
) -> Comparison:
    """Run all missing cells, seed by seed, so that all methods have equally many cells when time is up.

    Args:
        settings: Settings of the comparison.
        data: Labeled images.
        executor: Executor of the jobs.
        progress: Function that receives the progress of features and cells.
        draw: Function that returns the parts of a seed; None: by `settings.split`.

    Raises:
        ConfigError: A method does not work with the settings.
        LabelError: There are too few labels.
        PoolError: An image cannot be read; all methods must see the same images.
        WorkspaceError: The results cannot be written; earlier results are kept.
    """
    deadline = Deadline(settings.minutes)
    planned = _plan(settings, data, draw or (lambda seed: split(data, settings.split, seed, settings.n_labels)))
    trunk_seconds = 0.0
    if any(cell.read() is None for cell in planned):
        trunk_seconds = _warm(settings, data, progress)
    cells: list[MethodCell] = []
    missing: list[tuple[str, int]] = []
    failed: list[tuple[str, int, str]] = []
    trained = 0
    for number, plan in enumerate(planned, start=1):
        found = plan.read()
        if found is None and deadline.is_over():
            missing.append((plan.method.name, plan.seed))
            continue
        try:
            if found is None:
                write_json(plan.path, dataclasses.asdict(_run(plan, settings, data, executor, trunk_seconds)))
                trained += 1
            # The written file is read again, so that a continued run gives the same result as an uninterrupted one.
            cells += [cell for cell in (found or plan.read(),) if cell is not None]
        except ModelError as error:  # this method fails on these labels; the others continue
            failed.append((plan.method.name, plan.seed, str(error)))
        progress("methods × seeds", number, len(planned))
    return Comparison(settings.methods, tuple(cells), tuple(missing), tuple(failed), trained)


def read_cell(path: Path) -> MethodCell | None:
    """Read a finished cell; None if the file does not exist.

    Raises:
        WorkspaceError: The file is damaged.
    """
    return read_cell_file(path, _build_cell)


def _build_cell(data: Any) -> MethodCell:
    stages = {
        name: CellStage(
            metrics=stage["metrics"],
            intervals={key: (low, high) for key, (low, high) in stage["intervals"].items()},
            count=tuple(stage["count"]),
            confidence=tuple(stage["confidence"]),
            accuracy=tuple(stage["accuracy"]),
            calibrator=stage["calibrator"],
        )
        for name, stage in sorted(data.pop("stages").items(), key=lambda item: (item[0] != RAW, item[0]))
    }
    scores = {
        name: OodScore(
            score["metrics"],
            {key: (low, high) for key, (low, high) in score["intervals"].items()},
            *(tuple(score[key]) for key in ("edges", "inside", "outside")),
        )
        for name, score in data.pop("ood", {}).items()
    }
    return MethodCell(**data, stages=stages, ood=scores)


# -- one cell ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    method: Method
    seed: int
    config: Config
    parts: Parts
    path: Path

    def read(self) -> MethodCell | None:
        return read_cell(self.path)


def _plan(settings: CompareSettings, data: LabeledImages, draw: Callable[[int], Parts]) -> list[_Plan]:
    configs = {method.name: uncalibrated(apply_method(settings.config, method)) for method in settings.methods}
    plans = []
    for seed in range(settings.seeds):
        parts = draw(seed)
        check_classes(data, parts, seed)
        for method in settings.methods:
            digest = _digest(configs[method.name], data, parts, seed, settings)
            name = f"{method.name.replace('/', '+')}-seed{seed}-{digest[:12]}.json"
            plans.append(_Plan(method, seed, configs[method.name], parts, settings.out / "cells" / name))
    return plans


def check_classes(data: LabeledImages, parts: Parts, seed: int) -> None:
    """Refuse training images of only one class. If one class is frequent, a random draw may hold no other.

    Raises:
        LabelError: All training images of this seed are of one class.
    """
    there = set(data.targets[parts.train].tolist())
    if len(there) > 1:
        return
    counts = ", ".join(f"{n} of {name}" for name, n in zip(data.classes, np.bincount(data.targets), strict=False))
    raise LabelError(
        f"With seed {seed}, the {len(parts.train)} training images are of one class only. All labels: {counts}.",
        "Label more images of the rare classes, or train on more images (--labels).",
    )


def split(data: LabeledImages, kind: SplitKind, seed: int, n_labels: int | None) -> Parts:
    """Return the parts of one seed.

    Raises:
        ConfigError: There is no holdout to measure on.
        LabelError: There are too few labels.
    """
    if kind == "stratified":
        return split_stratified(data.targets, seed, n_labels)
    if data.is_holdout is None:
        raise ConfigError("Only a workspace has a holdout.", "Leave --split holdout out.")
    return split_holdout(data.targets, data.is_holdout, seed, n_labels)


def uncalibrated(config: Config) -> Config:
    """Return the settings without post-hoc calibration."""
    dumped = config.model_dump(mode="json")
    dumped["calibration"]["method"] = "none"
    return validate_config(dumped, "comparison")


def _digest(config: Config, data: LabeledImages, parts: Parts, seed: int, settings: CompareSettings) -> str:
    """Return the digest of everything a cell depends on."""
    # Without defaults, so that a setting that a later alloop adds does not change the digest.
    dumped = config.model_dump(mode="json", include={"project", "model", "train"}, exclude_defaults=True)
    content = {
        "layout": LAYOUT,
        "alloop": __version__,
        "config": dumped,
        "classes": data.classes,
        "seed": seed,
        "calibrators": settings.calibrators,
        **(
            {"strangers": [image.key for image in settings.strangers], "odin": settings.odin_images}
            if settings.strangers
            else {}
        ),
        **({"draws": settings.draws} if settings.draws != DRAWS else {}),
        **({"fine_tuning": FINE_TUNING} if config.model.mode == "finetune" else {}),
        **({"pool": [image.key for image in data.images]} if config.train.learns_unlabeled(config.model) else {}),
        "parts": [
            [(data.images[position].key, int(data.targets[position])) for position in part.tolist()]
            for part in (parts.train, parts.calibration, parts.test)
        ],
    }
    return digest_of(content)


def _run(
    plan: _Plan, settings: CompareSettings, data: LabeledImages, executor: Executor, trunk_seconds: float
) -> MethodCell:
    with tempfile.TemporaryDirectory(dir=settings.out, prefix=".cell-") as scratch:
        trained, scored = train_and_score(plan.config, plan.parts, plan.seed, settings, data, executor, Path(scratch))
        log_probs = _read(scored, data, np.concatenate([plan.parts.calibration, plan.parts.test]))
        ood = _strangers(plan, settings, data, trained) if settings.strangers else {}
    n = len(plan.parts.calibration)
    seconds = trunk_seconds + scored.seconds / max(1, scored.n_images)
    return MethodCell(
        method=plan.method.name,
        seed=plan.seed,
        n_train=len(plan.parts.train),
        n_calibration=n,
        n_test=len(plan.parts.test),
        train_seconds=trained.seconds,
        score_seconds=seconds,
        stages=measure_stages(
            log_probs[:n],
            data.targets[plan.parts.calibration],
            log_probs[n:],
            data.targets[plan.parts.test],
            settings.calibrators,
            plan.seed,
            settings.draws,
        ),
        ood=ood,
    )


def _strangers(
    plan: _Plan, settings: CompareSettings, data: LabeledImages, trained: TrainResult
) -> dict[str, OodScore]:
    model = Classifier.open(
        trained.files, EngineSettings.of(plan.config), settings.cache, settings.device, pool=lambda: data.images
    )
    inside = [data.images[p] for p in plan.parts.test.tolist()]
    seed = derive_seed(plan.seed, "ood")
    return measure_strangers(model, inside, settings.strangers, seed, settings.odin_images, settings.draws)


def train_and_score(
    config: Config,
    parts: Parts,
    seed: int,
    settings: CompareSettings,
    data: LabeledImages,
    executor: Executor,
    scratch: Path,
) -> tuple[TrainResult, ScoreResult]:
    """Train a model on the training part, and return it with its raw predictions for the other parts."""
    take = [data.images[position] for position in parts.train.tolist()]
    job = TrainJob(
        settings=EngineSettings.of(config),
        classes=data.classes,
        images=tuple(take),
        targets=tuple(data.targets[parts.train].tolist()),
        holdout=(),
        holdout_targets=(),
        seed=derive_seed(seed, "compare", "train"),
        cache=settings.cache,
        out=scratch / "model",
        device=settings.device,
        pool=tuple(data.images),
        is_kept=False,
    )
    trained = executor.submit(job)
    others = tuple(data.images[position] for position in [*parts.calibration.tolist(), *parts.test.tolist()])
    scored = executor.submit(
        ScoreJob(
            job.settings,
            trained.files,
            others,
            settings.cache,
            scratch / "scores.parquet",
            settings.device,
            is_calibrated=False,
        )
    )
    refuse_failed((*trained.failed, *scored.failed), data.images)
    return trained, scored


def _read(scored: ScoreResult, data: LabeledImages, positions: npt.NDArray[np.int64]) -> Tensor:
    """Read raw log p̄, float64, in the order of the positions: [N, K], or [N, 2, K] by raw and smoothed heads."""
    rows: dict[int, Tensor] = {}
    for image_ids, log_probs in read_log_probs(scored.path):
        rows |= dict(zip(image_ids.tolist(), log_probs, strict=True))
    stacked = torch.stack([rows[data.images[position].image_id] for position in positions.tolist()])
    if bool(torch.isnan(stacked).any()):
        raise ModelError("A prediction is not a number.", "The training diverged; a lower learning rate may help.")
    return prepare(stacked)


def measure_stages(
    calibration: Tensor,
    calibration_targets: npt.NDArray[np.int64],
    test: Tensor,
    test_targets: npt.NDArray[np.int64],
    calibrators: Sequence[str],
    seed: int,
    draws: int = DRAWS,
) -> dict[str, CellStage]:
    """Measure raw predictions, and predictions after each calibrator.

    Args:
        calibration: Raw log p̄ [C, K] to which calibrators are fitted; if empty, they are cross-fitted on the test part.
        calibration_targets: Class positions [C].
        test: Raw log p̄ [N, K] to measure.
        test_targets: Class positions [N].
        calibrators: Names of the calibrators.
        seed: Seed of folds and bootstrap draws.
        draws: Number of bootstrap draws.
    """
    stages = {RAW: measure_stage(plain(test), test_targets, seed, draws=draws)}
    for name in calibrators:
        if len(calibration):
            fitted = fit_calibrator(name, calibration, torch.from_numpy(calibration_targets), seed)
            calibrated = fitted.calibrator.apply(test)
        else:
            calibrated, fitted = cross_fit(name, test, torch.from_numpy(test_targets), seed)
        stages[name] = measure_stage(calibrated, test_targets, seed, to_json(fitted), draws)
    return stages


def measure_stage(
    log_probs: Tensor,
    targets: npt.NDArray[np.int64],
    seed: int,
    calibrator: Mapping[str, Any] | None = None,
    draws: int = DRAWS,
) -> CellStage:
    """Return all metrics of predictions [N, K] with their intervals."""
    rows: npt.NDArray[np.float64] = log_probs.double().numpy()
    probs = np.exp(rows)
    bins, n = confidence_bins(probs, targets), len(targets)
    statistics = statistics_of(rows, targets)
    generator = np.random.default_rng(derive_seed(seed, "compare", "bootstrap"))
    measured = {
        "accuracy": wilson(round(accuracy(probs, targets) * n), n),
        **bootstrap_all(statistics, n, generator, draws),
    }
    return CellStage(
        metrics={name: interval.value for name, interval in measured.items()},
        intervals={name: (interval.low, interval.high) for name, interval in measured.items()},
        count=tuple(bins.count.tolist()),
        confidence=_filled(bins, bins.confidence),
        accuracy=_filled(bins, bins.accuracy),
        calibrator=calibrator,
    )


def _filled(bins: Bins, values: npt.NDArray[np.float64]) -> tuple[float | None, ...]:
    """Return one value for each bin, and None for a bin without images.

    The mean of an empty bin is NaN, and JSON cannot hold NaN.
    """
    return tuple(value if n else None for value, n in zip(values.tolist(), bins.count.tolist(), strict=True))


# -- features and time ------------------------------------------------------------------------------------------------


def _warm(settings: CompareSettings, data: LabeledImages, progress: Progress) -> float:
    """With a frozen trunk, compute all features before timing starts, and time the trunk separately.

    Returns:
        Seconds of the trunk per image; 0 in finetune mode, where scoring runs the trunk.
    """
    make_output_folder(settings.out)
    if settings.config.model.mode != "frozen":
        return 0.0
    everything = (*data.images, *settings.strangers)
    backbone = compute_features(settings.config, everything, settings.cache, settings.device, progress)
    # A continued run uses the same value.
    return time_trunk(backbone, settings.config, data.images, settings.device, settings.out / "trunk.json")
