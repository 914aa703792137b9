"""Comparison of trunks on the same labels by nested cross-validation. Each trunk and outer fold has a JSON file.

An outer fold is only measured on. Everything that is fitted or chosen (standardization, heads, calibrator) is fitted or
chosen on the other folds; the calibrator by cross-validation among them.
"""

import dataclasses
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alloop import __version__
from alloop.config.load import set_values
from alloop.config.schema import Config, TrunkSettings
from alloop.engine.build import search_paths
from alloop.engine.jobs import TrainJob
from alloop.engine.settings import EngineSettings
from alloop.errors import ConfigError, ModelError
from alloop.evaluation.intervals import DRAWS, Statistic, bootstrap_all, ece_of, mean_of, wilson, wilson_parts
from alloop.executor import Executor
from alloop.files import make_output_folder, write_json
from alloop.models.backbones import check_backbone
from alloop.progress import Progress, silent
from alloop.records import Interval
from alloop.seeds import derive_seed
from alloop.simulate.cells import Deadline, digest_of, read_cell_file
from alloop.simulate.compare import check_classes
from alloop.simulate.labeled import LabeledImages, Parts, draw_folds
from alloop.simulate.warming import compute_features, digest_of_trunk, refuse_failed, time_trunk

N_FOLDS = 5
LAYOUT = 1  # layout of cell files; files of another layout are computed again
METRICS = ("accuracy", "nll", "ece")
JOIN, AT = "+", "@"  # "a+b": side by side; "a@w": with the weights w


@dataclasses.dataclass(frozen=True)
class Contender:
    """Trunk, or trunks side by side, as named on the command line, with the settings that use it."""

    name: str
    config: Config

    @property
    def stem(self) -> str:
        """Name for a file."""
        return re.sub(r"[^A-Za-z0-9_.]+", "-", self.name)[:80]


@dataclasses.dataclass(frozen=True)
class TrunksSettings:
    """Settings of a comparison of trunks.

    Attributes:
        contenders: Trunks to compare. Differences are relative to the first.
        seeds: Number of cross-validations, each with other folds.
        n_labels: Number of training images of each fold; None: all others.
        minutes: Time after which no cell is started; None: no limit.
        out: Folder of the results.
    """

    contenders: tuple[Contender, ...]
    seeds: int
    out: Path
    cache: Path
    n_labels: int | None = None
    minutes: float | None = None
    device: str | None = None


@dataclasses.dataclass(frozen=True)
class TrunkCell:
    """Calibrated predictions for the images of one outer fold, in the order of the fold.

    Attributes:
        correct: 1 for each image whose top class is right, else 0.
        nll: Negative log-probability of the right class, in nats.
        confidence: Probability of the top class.
        n_features: Number of features D.
        train_seconds: Wall time of fitting heads and calibrator, without features.
        trunk_seconds: Wall time of reading an image and running the trunks.
    """

    name: str
    seed: int
    fold: int
    n_train: int
    n_features: int
    train_seconds: float
    trunk_seconds: float
    correct: tuple[int, ...]
    nll: tuple[float, ...]
    confidence: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class TrunkRow:
    """Results of one contender over all folds and seeds.

    Attributes:
        n_train: Smallest number of training images of a fold.
        metrics: accuracy, nll (nats) and ece with 95 % intervals over images.
        ahead: Differences to the first contender on the same images; empty for the first.
        milliseconds: Time of reading an image and running the trunks.
    """

    name: str
    n_features: int
    n_images: int
    n_seeds: int
    n_train: int
    metrics: Mapping[str, Interval]
    ahead: Mapping[str, Interval]
    milliseconds: float
    train_seconds: float


@dataclasses.dataclass(frozen=True)
class TrunkComparison:
    """Results of a comparison. `missing` were not finished because time was up; `failed` have a reason."""

    rows: tuple[TrunkRow, ...]
    missing: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    trained: int = 0


def find_contenders(config: Config, names: Sequence[str], cache: Path) -> tuple[Contender, ...]:
    """Return the named trunks, each once, in the order given.

    A name is that of a trunk, `NAME@WEIGHTS`, or several of these joined by `+`. Without `@`, a trunk that `[model]`
    names has its weights and image size; any other has its default weights and their size.

    Args:
        config: Settings; heads, training and calibration are used for all trunks.
        names: Names as above.
        cache: Folder of features; factories and weights files lie beside it.

    Raises:
        ConfigError: A name is unknown, no trunk, or named twice in a combination; or `[model]` fine-tunes.
        ModelError: A package is missing.
    """
    if config.model.mode == "finetune":
        raise ConfigError(
            'alloop compare --backbones measures frozen trunks, but [model] mode = "finetune".',
            "Run it with ALLOOP__MODEL__MODE=frozen.",
        )
    if not names:
        raise ConfigError("--backbones names no trunk.", "Example: --backbones resnet50,resnet50@IMAGENET1K_V1.")
    own = {trunk.name: trunk for trunk in config.model.trunks}
    return tuple(_find(config, name, own, cache) for name in dict.fromkeys(names))


def _find(config: Config, name: str, own: Mapping[str, TrunkSettings], cache: Path) -> Contender:
    trunks = [_read_trunk(part, own) for part in name.split(JOIN)]
    for trunk in trunks:
        if trunk.name.startswith("features:"):
            raise ConfigError(
                f"{trunk.name} stands for given features; only trunks that look at images can be compared.",
                "Name trunks, as in `alloop backbones`.",
            )
        check_backbone(trunk.name, trunk.weights, search_paths(cache))
    columns = {
        key: [getattr(trunk, field) for trunk in trunks]
        for key, field in (("backbone", "name"), ("weights", "weights"), ("image_size", "image_size"))
    }
    return Contender(name, set_values(config, model=columns))


def _read_trunk(text: str, own: Mapping[str, TrunkSettings]) -> TrunkSettings:
    name, at, weights = text.partition(AT)
    if not name or (at and not weights):
        raise ConfigError(f"--backbones: {text!r} is not a trunk.", "Write NAME, NAME@WEIGHTS, or A+B.")
    if at:
        return TrunkSettings(name, weights, None)
    return own.get(name, TrunkSettings(name, "DEFAULT", None))


def compare_trunks(
    settings: TrunksSettings, data: LabeledImages, executor: Executor, progress: Progress = silent
) -> TrunkComparison:
    """Run all missing cells, contender by contender, and summarize.

    A contender whose weights cannot be loaded, or whose training fails, has failed; the others continue.

    Raises:
        LabelError: There are too few labels.
        PoolError: An image cannot be read; all trunks must see the same images.
        WorkspaceError: The results cannot be written; earlier results are kept.
    """
    deadline = Deadline(settings.minutes)
    make_output_folder(settings.out)
    folds = [draw_folds(data.targets, seed, N_FOLDS, settings.n_labels) for seed in range(settings.seeds)]
    for seed, parts in enumerate(folds):
        for part in parts:
            check_classes(data, part, seed)
    found: dict[str, list[TrunkCell]] = {}
    failed: list[tuple[str, str]] = []
    trained = done = 0
    total = len(settings.contenders) * settings.seeds * N_FOLDS
    for contender in settings.contenders:
        plans = [
            _Plan(contender, seed, fold, part, _path(settings, contender, data, seed, fold, part))
            for seed, parts in enumerate(folds)
            for fold, part in enumerate(parts)
        ]
        try:
            cells: list[TrunkCell] = []
            warm: _Warm | None = None
            for plan in plans:
                cell = plan.read()
                if cell is None and not deadline.is_over():
                    warm = warm or _warm(settings, contender, data, progress)
                    write_json(plan.path, dataclasses.asdict(_run(plan, settings, data, executor, warm)))
                    trained += 1
                    cell = plan.read()  # as a continued run does, so that both give the same result
                cells += [cell] if cell is not None else []
                done += 1
                progress("trunks × folds", done, total)
            found[contender.name] = cells
        except ModelError as error:
            failed.append((contender.name, str(error)))
            done = len(plans) * (len(found) + len(failed))
            progress("trunks × folds", done, total)
    whole = {name: cells for name, cells in found.items() if len(cells) == settings.seeds * N_FOLDS}
    rows = _summarize(whole, folds, settings.contenders[0].name, len(data.images))
    return TrunkComparison(rows, tuple(name for name in found if name not in whole), tuple(failed), trained)


# -- one cell ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    contender: Contender
    seed: int
    fold: int
    parts: Parts
    path: Path

    def read(self) -> TrunkCell | None:
        return read_cell_file(self.path, _build_cell)


def _build_cell(data: Any) -> TrunkCell:
    return TrunkCell(**data | {key: tuple(data[key]) for key in ("correct", "nll", "confidence")})


def _path(
    settings: TrunksSettings, contender: Contender, data: LabeledImages, seed: int, fold: int, parts: Parts
) -> Path:
    """Return the place of a cell. Its name has the digest of everything that the cell depends on."""
    # Without defaults, so that a setting that a later alloop adds does not change the digest.
    config = contender.config.model_dump(
        mode="json", include={"project", "model", "train", "calibration"}, exclude_defaults=True
    )
    content = {
        "layout": LAYOUT,
        "alloop": __version__,
        "config": config,
        "classes": data.classes,
        "seed": seed,
        "pool": sorted(image.key for image in data.images),
        "parts": [
            [(data.images[position].key, int(data.targets[position])) for position in part.tolist()]
            for part in (parts.train, parts.test)
        ],
    }
    return settings.out / "cells" / f"{contender.stem}-seed{seed}-fold{fold}-{digest_of(content)[:12]}.json"


class _Warm(NamedTuple):
    """Number of features D, and seconds that the trunks need for an image."""

    n_features: int
    seconds: float


def _warm(settings: TrunksSettings, contender: Contender, data: LabeledImages, progress: Progress) -> _Warm:
    """Compute all features, and time the trunks."""
    backbone = compute_features(contender.config, data.images, settings.cache, settings.device, progress)
    seconds = 0.0
    for part in backbone.alone:
        note = settings.out / f"trunk-{digest_of_trunk(part)[:12]}.json"
        seconds += time_trunk(part, contender.config, data.images, settings.device, note)
    return _Warm(backbone.n_features, seconds)


def _run(plan: _Plan, settings: TrunksSettings, data: LabeledImages, executor: Executor, warm: _Warm) -> TrunkCell:
    train, test = plan.parts.train.tolist(), plan.parts.test.tolist()
    with tempfile.TemporaryDirectory(dir=settings.out, prefix=".cell-") as scratch:
        job = TrainJob(
            settings=EngineSettings.of(plan.contender.config),
            classes=data.classes,
            images=tuple(data.images[position] for position in train),
            targets=tuple(data.targets[plan.parts.train].tolist()),
            holdout=tuple(data.images[position] for position in test),
            holdout_targets=tuple(data.targets[plan.parts.test].tolist()),
            seed=derive_seed(plan.seed, "compare", "trunks", plan.fold),
            cache=settings.cache,
            out=Path(scratch) / "model",
            device=settings.device,
            is_test=True,  # nothing is fitted to the outer fold, the calibrator neither
            pool=data.images,
            is_kept=False,
        )
        trained = executor.submit(job)
    refuse_failed(trained.failed, data.images)
    log_probs = trained.holdout_calibrated_log_probs.astype(np.float64)
    if not np.isfinite(log_probs).all():
        raise ModelError("A prediction is not a finite number.", "The training diverged.")
    targets = data.targets[plan.parts.test]
    return TrunkCell(
        name=plan.contender.name,
        seed=plan.seed,
        fold=plan.fold,
        n_train=len(train),
        n_features=warm.n_features,
        train_seconds=trained.seconds,
        trunk_seconds=warm.seconds,
        correct=tuple((log_probs.argmax(axis=1) == targets).astype(int).tolist()),
        nll=tuple((-log_probs[np.arange(len(targets)), targets]).tolist()),
        confidence=tuple(np.exp(log_probs.max(axis=1)).tolist()),
    )


# -- all cells --------------------------------------------------------------------------------------------------------

Rows = npt.NDArray[np.float64]  # [seeds, N], in the order of the images


@dataclasses.dataclass(frozen=True)
class _Measured:
    """Results of a contender for every seed and image: correct, nll, confidence."""

    correct: Rows
    nll: Rows
    confidence: Rows

    def statistics(self) -> dict[str, Statistic]:
        """Return the metrics, each averaged over seeds."""
        return {
            "accuracy": mean_of(self.correct.mean(axis=0)),
            "nll": mean_of(self.nll.mean(axis=0)),
            "ece": _average([_ece(sure, right) for sure, right in zip(self.confidence, self.correct, strict=True)]),
        }


def _ece(confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.float64]) -> Statistic:
    """Return the ECE of top classes. It needs no other class, so a right answer counts as class 0 of two."""
    return ece_of(np.stack([confidence, np.zeros_like(confidence)], axis=1), (correct == 0).astype(np.int64))


def _average(statistics: Sequence[Statistic]) -> Statistic:
    return lambda counts: np.mean([statistic(counts) for statistic in statistics], axis=0)


def _minus(one: Statistic, other: Statistic) -> Statistic:
    return lambda counts: one(counts) - other(counts)


def _summarize(
    cells: Mapping[str, Sequence[TrunkCell]], folds: Sequence[Sequence[Parts]], first: str, n: int
) -> tuple[TrunkRow, ...]:
    """Return a row for every contender. All intervals come from the same resamples of the images."""
    measured = {name: _collect(mine, folds, n) for name, mine in cells.items()}
    statistics: dict[tuple[str, str, bool], Statistic] = {}
    for name, one in measured.items():
        for metric, statistic in one.statistics().items():
            statistics[name, metric, False] = statistic
            if first in measured and name != first:
                statistics[name, metric, True] = _minus(statistic, measured[first].statistics()[metric])
    names = {str(number): key for number, key in enumerate(statistics)}
    generator = np.random.default_rng(derive_seed(0, "compare", "trunks", "bootstrap"))
    intervals = bootstrap_all({number: statistics[key] for number, key in names.items()}, n, generator, DRAWS)
    found = {key: intervals[number] for number, key in names.items()}
    for name, one in measured.items():
        found[name, "accuracy", False] = _share(float(one.correct.mean()), n)
        if (name, "accuracy", True) in found and np.array_equal(one.correct, measured[first].correct):
            # Trunks that never differed here could differ on other images: Wilson's interval of a share of 0.
            width = wilson(0, n).high
            found[name, "accuracy", True] = Interval(0.0, -width, width, n, "wilson 95%")
    return tuple(
        TrunkRow(
            name=name,
            n_features=mine[0].n_features,
            n_images=n,
            n_seeds=len(folds),
            n_train=min(cell.n_train for cell in mine),
            metrics={metric: found[name, metric, False] for metric in METRICS},
            ahead={metric: found[name, metric, True] for metric in METRICS if (name, metric, True) in found},
            milliseconds=1000 * float(np.mean([cell.trunk_seconds for cell in mine])),
            train_seconds=float(np.mean([cell.train_seconds for cell in mine])),
        )
        for name, mine in cells.items()
    )


def _collect(cells: Sequence[TrunkCell], folds: Sequence[Sequence[Parts]], n: int) -> _Measured:
    """Put the results of all folds into the order of the images."""
    rows = {field: np.full((len(folds), n), np.nan) for field in ("correct", "nll", "confidence")}
    for cell in cells:
        for field, values in rows.items():
            values[cell.seed, folds[cell.seed][cell.fold].test] = getattr(cell, field)
    return _Measured(**rows)


def _share(share: float, n: int) -> Interval:
    """Return Wilson's interval of a share that was averaged over seeds."""
    middle, half = wilson_parts(share, n)
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)), n, "wilson 95%")


def to_json(comparison: TrunkComparison) -> dict[str, Any]:
    """Convert to plain data: the table, and what is missing or failed."""
    return {
        "rows": [dataclasses.asdict(row) for row in comparison.rows],
        "missing": list(comparison.missing),
        "failed": [{"name": name, "reason": why} for name, why in comparison.failed],
    }


def table_lines(comparison: TrunkComparison) -> list[dict[str, object]]:
    """Return a line for each row, for a CSV."""
    return [
        {
            "backbone": row.name,
            "features": row.n_features,
            "images": row.n_images,
            "seeds": row.n_seeds,
            "n_train": row.n_train,
            **_ends("", row.metrics),
            **_ends("ahead_", row.ahead),
            "milliseconds": f"{row.milliseconds:.4f}",
            "train_seconds": f"{row.train_seconds:.3f}",
        }
        for row in comparison.rows
    ]


def _ends(start: str, intervals: Mapping[str, Interval]) -> dict[str, str]:
    """Return the cells of a line: each metric's value and the two ends of its interval, as texts.

    A metric without an interval has empty texts. The names of the cells begin with `start`.
    """
    found = {}
    for metric in METRICS:
        for field, end in (("value", ""), ("low", "_low"), ("high", "_high")):
            interval = intervals.get(metric)
            found[f"{start}{metric}{end}"] = "" if interval is None else f"{getattr(interval, field):.6g}"
    return found
