"""The labels that a round trains on, the job made of them, and the record of the model that comes out."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from alloop.config.schema import Config
from alloop.engine.jobs import TrainJob, TrainResult
from alloop.engine.settings import EngineSettings
from alloop.engine.targets import TASKS, Coding, Target, encode_known
from alloop.loop.workbench import Workbench
from alloop.project import Project
from alloop.records import ImageRef, Interval, Split
from alloop.seeds import derive_seed
from alloop.store.annotations import LabelRecord, list_labels
from alloop.store.auto_labels import list_auto_labels
from alloop.store.images import find_refs, list_refs
from alloop.store.rounds import ModelRecord, RoundRecord, add_model, set_metrics
from alloop.store.session import reading

Pairs = tuple[tuple[LabelRecord, ImageRef], ...]


@dataclasses.dataclass(frozen=True)
class TrainingLabels:
    """Labels that a model can learn, of images whose file is there.

    Attributes:
        coding: Translates labels into targets.
        train, holdout: Labels with their images.
        missing: Number of further training labels, whose image is missing.
        auto: Classes of automatic labels with their images, to train on as well. Empty unless
            `[train] use_auto_labels` is true.
    """

    classes: tuple[str, ...]
    coding: Coding
    train: Pairs
    holdout: Pairs
    missing: int
    auto: tuple[tuple[str, ImageRef], ...] = ()

    @property
    def are_enough(self) -> bool:
        """Return whether a model can be trained on them."""
        return not self.coding.shortage(self.targets(self.train))

    def targets(self, pairs: Pairs) -> tuple[Target, ...]:
        """Return the target of each label."""
        return encode_known(self.coding, [label.consensus.value for label, _ in pairs])

    def digest(self) -> str:
        """Return the SHA-256 of a model's labels: classes, and each image's hash, use and label."""
        lines = [f"class {name}" for name in self.classes]
        for use, pairs in (("train", self.train), ("holdout", self.holdout)):
            lines += sorted(f"{use} {label.sha256} {label.consensus.value}" for label, _ in pairs)
        lines += sorted(f"auto {ref.sha256} {name}" for name, ref in self.auto)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_labels(session: Session, config: Config) -> TrainingLabels:
    """Read the labels as they are now."""
    coding = TASKS[config.project.task](config.project.classes)
    train, missing = _read_split(session, Split.TRAIN, coding)
    holdout, _ = _read_split(session, Split.HOLDOUT, coding)
    auto = _read_auto(session, coding) if config.train.use_auto_labels else ()
    return TrainingLabels(config.project.classes, coding, train, holdout, missing, auto)


def current_digest(project: Project) -> str | None:
    """Return the digest of the present labels; None if they are too few to train on."""
    with reading(project.database) as session:
        labels = read_labels(session, project.config)
    return labels.digest() if labels.are_enough else None


def make_train_job(
    project: Project,
    current: RoundRecord,
    config: Config,
    labels: TrainingLabels,
    before: ModelRecord | None,
    pool: Sequence[ImageRef],
    device: str | None,
) -> TrainJob:
    """Make the job of a round.

    Args:
        project: The workspace.
        current: The round.
        config: Settings of the round.
        labels: The labels.
        before: Newest model so far; its heads keep their specialties, and its graph of the pool is kept while it fits.
        pool: Images that may teach features, from `intake.teaching`.
        device: Device instead of `[model] device`.
    """
    auto = encode_known(labels.coding, [name for name, _ in labels.auto])
    return TrainJob(
        settings=EngineSettings.of(config),
        classes=labels.classes,
        images=(*(ref for _, ref in labels.train), *(ref for _, ref in labels.auto)),
        targets=(*labels.targets(labels.train), *auto),
        holdout=tuple(ref for _, ref in labels.holdout),
        holdout_targets=labels.targets(labels.holdout),
        seed=derive_seed(current.seed, "train"),
        cache=project.paths.cache,
        out=project.paths.model(current.number),
        device=device,
        head_classes=_kept_heads(before.head_classes if before else (), config),
        is_test=config.evaluation.test is not None,
        pool=tuple(pool),
        pool_before=None if before is None else before.files(project.folder).folder,
    )


def record_model(
    session: Session,
    bench: Workbench,
    current: RoundRecord,
    job: TrainJob,
    result: TrainResult,
    labels: TrainingLabels,
    metrics: Mapping[str, Mapping[str, Interval]],
) -> None:
    """Record the model version that a job gave, with its metrics.

    Args:
        session: Session to write in.
        bench: Workbench of the workspace.
        current: The round.
        job: The job.
        result: Its result.
        labels: Labels that the job was made of. Automatic ones are not counted.
        metrics: Split → metrics.
    """
    values: dict[str, Any] = {
        "round_id": current.id,
        "name": f"r{current.number}-{result.files.sha256[:8]}",
        "path": bench.project.paths.relative(result.files.folder),
        "sha256": result.files.sha256,
        "classes": list(job.classes),
        "head_classes": [list(part) for part in result.head_classes],
        "label_digest": labels.digest(),
        "n_labels": len(labels.train),
        "n_holdout": len(result.holdout_calibrated_log_probs),
        "seed": job.seed,
        "config": dict(current.config),
        "library_versions": result.library_versions,
        "history": {
            **result.history,
            "seconds": result.seconds,
            "automatic": len(labels.auto),
            "failed": [{"image": image_id, "reason": reason} for image_id, reason in result.failed],
        },
    }
    model_id = add_model(session, values, result.calibration, bench.now())
    for split, found in metrics.items():
        set_metrics(session, model_id, split, found, bench.now())


def _read_split(session: Session, split: Split, coding: Coding) -> tuple[Pairs, int]:
    """Return learnable labels of a split with their images, and the number of learnable labels without an image."""
    labels = [label for label in list_labels(session, split) if coding.encode(label.consensus.value) is not None]
    refs = {ref.image_id: ref for ref in list_refs(session, split, labeled=True)}
    there = tuple((label, refs[label.image_id]) for label in labels if label.image_id in refs)
    return there, len(labels) - len(there)


def _read_auto(session: Session, coding: Coding) -> tuple[tuple[str, ImageRef], ...]:
    """Return the automatic labels of classes that the model can learn, with their images."""
    labels = [label for label in list_auto_labels(session) if coding.encode(label.class_name) is not None]
    refs = find_refs(session, [label.image_id for label in labels])
    return tuple((label.class_name, refs[label.image_id]) for label in labels if label.image_id in refs)


def _kept_heads(before: tuple[tuple[str, ...], ...], config: Config) -> tuple[tuple[str, ...], ...]:
    """Return the specialties of each head of the previous model, if the number of heads is the same."""
    if len(before) != config.model.n_networks * config.model.n_heads:
        return ()
    return tuple(tuple(name for name in part if name in config.project.classes) for part in before)
