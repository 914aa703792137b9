"""The workspace that every cell of a simulation starts from: pool, test set, truth and features, prepared once."""

import csv
import dataclasses
import datetime as dt
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from alloop.config.load import set_values
from alloop.config.schema import AcquisitionConfig, Config, EvaluationConfig
from alloop.engine.build import build_backbone
from alloop.errors import PoolError
from alloop.files import write_bytes
from alloop.loop.labels import ImportedLabel, record_imported
from alloop.loop.workspace import backup_database, upgrade_database
from alloop.pool.cache import FeatureCache
from alloop.pool.given import given_files
from alloop.progress import Progress, silent
from alloop.project import Project
from alloop.records import ImageFile, Split
from alloop.simulate.features_file import GivenData, LabeledRows
from alloop.store.images import add_apart, set_split
from alloop.store.session import transaction

TEST = Path("test")  # what [evaluation] test says where the test set is in the base already


@dataclasses.dataclass(frozen=True)
class Base:
    """Files that cells copy or share.

    Attributes:
        database: Copied by each cell.
        truth: `sha256,label` of the pool, in the order of its rows.
        cache: Features, shared.
    """

    folder: Path

    @property
    def database(self) -> Path:
        return self.folder / "base.db"

    @property
    def truth(self) -> Path:
        return self.folder / "truth.csv"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def read_truth(self) -> dict[str, str]:
        """Content hash → class, in the order of the rows."""
        with self.truth.open(encoding="utf-8", newline="") as lines:
            return {row["sha256"]: row["label"] for row in csv.DictReader(lines)}


def given_config(config: Config, data: GivenData) -> Config:
    """Settings for a pool of features: what shapes heads, training and asking stays; what is about images does not."""
    return set_values(
        config,
        project={"classes": list(data.classes)},
        pool={"images": [], "near_duplicates": False},
        model={"backbone": f"features:{data.pool.features.shape[1]}", "weights": "none", "image_size": None},
        evaluation={"test": None if data.test is None else str(TEST)},
    )


def pure_config(config: Config) -> Config:
    """What is the same in every cell of a simulation: the oracle answers, and nothing but the rounds ends it.

    The first batch is drawn at random, so that all strategies of a seed start from the same labels.
    """
    acquisition = {"cold_start": "random"} if "cold_start" in AcquisitionConfig.model_fields else {}
    evaluation = {"matched_arm": False} if "matched_arm" in EvaluationConfig.model_fields else {}
    stopping = {"label_budget": None, "target_accuracy": None, "stop_when_flat": False, "stop_when_stable": False}
    return set_values(
        config,
        database={"url": ""},
        loop={**stopping, "min_answered": 1.0},
        acquisition=acquisition,
        evaluation=evaluation,
        labeling={"backend": "oracle", "oracle": {**config.labeling.oracle.model_dump(), "file": "../base/truth.csv"}},
    )


def prepare_given(folder: Path, data: GivenData, config: Config, progress: Progress = silent) -> Base:
    """A base whose images are rows of an array.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    base = Base(folder)
    pool = given_files(data.pool.features)
    tested = [] if data.test is None else given_files(data.test.features, first=len(pool))
    cache = FeatureCache(base.cache / "features", build_backbone(config).fingerprint(), data.pool.features.shape[1])
    cache.add([file.sha256 for file in pool], data.pool.features)
    if data.test is not None:
        cache.add([file.sha256 for file in tested], data.test.features)
    folder.mkdir(parents=True, exist_ok=True)
    project = Project(folder, config, {})
    try:
        upgrade_database(project)
        _add_rows(project, pool, tested, data.test)
        backup_database(project, base.database)
    finally:
        project.close()
    _write_truth(base.truth, _labels(pool, data.pool, data.classes))
    progress("prepare", 1, 1)
    return base


def _add_rows(
    project: Project, pool: Sequence[ImageFile], tested: Sequence[ImageFile], test: LabeledRows | None
) -> None:
    classes = project.config.project.classes
    now = dt.datetime.now(dt.UTC)
    with transaction(project.database) as session:
        if len(add_apart(session, pool, now)) < 2:
            raise PoolError("The pool has one row.", "Give more.")
        set_split(session, add_apart(session, tested, now), Split.HOLDOUT)
        if test is not None:
            known = [ImportedLabel(*pair) for pair in _labels(tested, test, classes).items()]
            record_imported(session, known, classes, "test")


def _labels(files: Sequence[ImageFile], rows: LabeledRows, classes: Sequence[str]) -> dict[str, str]:
    targets: list[int] = np.asarray(rows.targets).tolist()
    return {file.sha256: classes[target] for file, target in zip(files, targets, strict=True)}


def _write_truth(path: Path, labels: Mapping[str, str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("sha256", "label"), *labels.items()])
    write_bytes(path, text.getvalue().encode())
