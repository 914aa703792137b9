"""Base of a simulation: the workspace with pool, test set, true labels and features that every cell starts from."""

import contextlib
import csv
import dataclasses
import datetime as dt
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from alloop.config.load import set_values
from alloop.config.schema import Config
from alloop.engine.build import build_backbone, build_hardware, search_paths
from alloop.engine.features import ensure_features
from alloop.engine.settings import EngineSettings
from alloop.errors import PoolError
from alloop.executor import Executor
from alloop.files import write_bytes
from alloop.loop.intake.ingest import add_images
from alloop.loop.intake.judge import judge_of
from alloop.loop.intake.labels import record_imported
from alloop.loop.intake.named_images import listed_images
from alloop.loop.intake.test_set import ensure_test_set
from alloop.loop.workbench import make_tools, open_workbench
from alloop.loop.workspace import backup_database, upgrade_database
from alloop.pool.cache import FeatureCache
from alloop.pool.given import given_files
from alloop.pool.sources import content_hash, expand
from alloop.progress import Progress, silent
from alloop.project import Project
from alloop.records import ImageFile, LocationStatus, Split
from alloop.simulate.cells import digest_of
from alloop.simulate.features_file import GivenData, LabeledRows
from alloop.simulate.labeled import LabeledImages
from alloop.simulate.real_people import RealPeople
from alloop.store.images import add_apart, list_locations, list_refs, raise_depth, set_split
from alloop.store.session import transaction

TEST = Path("test")  # value of [evaluation] test if the base holds the test set


@dataclasses.dataclass(frozen=True)
class Base:
    """Files of the base that cells copy or share.

    Attributes:
        database: Database; each cell copies it.
        truth: CSV `sha256,label` of the pool, in the order of its rows, and one column of answers per real person.
        cache: Folder of features, shared by all cells and kept.
    """

    folder: Path
    cache: Path

    @property
    def database(self) -> Path:
        return self.folder / "base.db"

    @property
    def truth(self) -> Path:
        return self.folder / "truth.csv"

    def read_truth(self) -> dict[str, str]:
        """Return content hash → class, in the order of the rows."""
        with self.truth.open(encoding="utf-8", newline="") as lines:
            return {row["sha256"]: row["label"] for row in csv.DictReader(lines)}


@dataclasses.dataclass(frozen=True)
class Source:
    """Data of a simulation.

    Attributes:
        config: Settings, adapted to the data.
        digest: Digest of all data.
        about: Description in a sentence.
        base: Folder of the base, which need not exist yet.
        prepare: Function that makes the base.
        names: Names of the rows; None if they have no names.
    """

    config: Config
    digest: str
    about: str
    base: Base
    prepare: Callable[[Executor, Progress], None]
    names: tuple[str, ...] | None = None


def given_source(config: Config, data: GivenData, scratch: Path) -> Source:
    """Return a source of given features, the rows of an array."""
    fitted = pure_config(given_config(config, data), data.people)
    base = Base(scratch / "base", scratch / "cache")
    measured = "a random holdout" if data.test is None else f"{len(data.test.targets)} others"
    about = (
        f"{len(data.pool.targets)} rows of {data.pool.features.shape[1]} features and {len(data.classes)} classes, "
        f"measured on {measured}.{_asked(fitted, data.people)}"
    )
    return Source(fitted, data.digest, about, base, lambda _, progress: prepare_given(base, data, fitted, progress))


def image_source(
    config: Config, data: LabeledImages, test: Path | None, cache: Path, scratch: Path, device: str | None = None
) -> Source:
    """Return a source of labeled images.

    Args:
        config: Settings; their backbone computes the features.
        data: Images of the pool.
        test: Test set, as a folder per class or a CSV; None: holdouts are drawn.
        cache: Folder of features.
        scratch: Folder of the base.
        device: Device instead of [model] device.
    """
    fitted = pure_config(
        set_values(
            config,
            project={"classes": list(data.classes)},
            pool={"images": []},
            evaluation={"test": None if test is None else str(test.absolute())},
        ),
        data.people,
    )
    base = Base(scratch / "base", cache)
    names = [(image.key, int(target)) for image, target in zip(data.images, data.targets, strict=True)]
    content = [data.classes, names, None if test is None else _digest_files(test)]
    # Only with people, so that results computed without people are still found.
    digest = digest_of(content if data.people is None else [*content, dataclasses.astuple(data.people)])
    measured = "a random holdout" if test is None else str(test)
    about = f"{len(names)} images of {len(data.classes)} classes, measured on {measured}.{_asked(fitted, data.people)}"
    paths = tuple(image.path for image in data.images)

    def prepare(executor: Executor, progress: Progress) -> None:
        prepare_images(base, data, fitted, executor, device, progress)

    return Source(fitted, digest, about, base, prepare, paths)


def given_config(config: Config, data: GivenData) -> Config:
    """Return settings for a pool of features: settings of heads, training and asking stay, those of images do not."""
    return set_values(
        config,
        project={"classes": list(data.classes)},
        pool={"images": [], "near_duplicates": False},
        model={"backbone": f"features:{data.pool.features.shape[1]}", "weights": "none", "image_size": None},
        evaluation={"test": None if data.test is None else str(TEST)},
    )


def pure_config(config: Config, people: RealPeople | None = None) -> Config:
    """Return the settings that all cells share: the oracle answers, and only the number of rounds ends a run.

    The first batch is drawn at random, so that all strategies of a seed start from the same labels.

    Args:
        config: Settings.
        people: People whose answers the file of true labels holds; None: nobody.

    Raises:
        LabelError: An image has fewer answers than requested.
    """
    n_answers = config.labeling.annotations_per_image
    oracle = config.labeling.oracle.model_dump() | {
        "file": "../base/truth.csv",
        "columns": () if people is None else people.names,
    }
    if people is None:  # as many simulated people as must answer
        oracle["annotators"] = max(config.labeling.oracle.annotators, n_answers)
    stopping = {"label_budget": None, "target_accuracy": None, "stop_when_flat": False, "stop_when_stable": False}
    fitted = set_values(
        config,
        database={"url": ""},
        loop={**stopping, "min_answered": 1.0},
        acquisition={"cold_start": "random"},
        evaluation={"matched_arm": False},
        labeling={"backend": "oracle", "oracle": oracle},
    )
    if people is not None:
        people.check_enough(n_answers)
    return fitted


def _asked(config: Config, people: RealPeople | None) -> str:
    if people is None:
        return ""
    n_answers = config.labeling.annotations_per_image
    return (
        f" Answers are those of {len(people.names)} people, {n_answers} to an image; accuracy on a random holdout is "
        "agreement with them."
    )


def prepare_given(base: Base, data: GivenData, config: Config, progress: Progress = silent) -> None:
    """Make a base whose images are rows of an array.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    pool = given_files(data.pool.features)
    tested = [] if data.test is None else given_files(data.test.features, first=len(pool))
    cache = FeatureCache(
        base.cache / "features", build_backbone(EngineSettings.of(config)).fingerprint(), data.pool.features.shape[1]
    )
    cache.add([file.sha256 for file in pool], data.pool.features)
    if data.test is not None:
        cache.add([file.sha256 for file in tested], data.test.features)
    with _making(base, config) as project:
        _add_rows(project, pool, tested, data.test)
    _write_truth(base.truth, _labels(pool, data.pool, data.classes), data.people)
    progress("prepare", 1, 1)


def prepare_images(
    base: Base,
    data: LabeledImages,
    config: Config,
    executor: Executor,
    device: str | None,
    progress: Progress = silent,
) -> None:
    """Make a base of image files, with a test set if the settings name one, and features if the trunk is frozen.

    Raises:
        PoolError: An image cannot be read; all strategies must see the same images.
        LabelError: The test set has a class that the pool does not have.
    """
    with _making(base, config) as project:
        with open_workbench(make_tools(project, executor, progress)) as bench:
            add_images(bench, [image.path for image in data.images])
            ensure_test_set(bench)
        with transaction(project.database) as session:
            # Images of a workspace are read at the workspace's depth.
            raise_depth(session, max((image.depth or 0 for image in data.images), default=0))
            refs = list_refs(session)
            unreadable = list_locations(session, LocationStatus.UNREADABLE)
        if unreadable:
            first = unreadable[0]
            raise PoolError(
                f"{len(unreadable)} images cannot be read, for example {first.path}: {first.reason}.",
                "Mend or remove them.",
            )
        if config.model.mode == "frozen":
            engine = EngineSettings.of(config)
            hardware = build_hardware(engine, device)
            backbone = build_backbone(engine, search_paths(base.cache)).in_precision(hardware.precision)
            ensure_features(refs, backbone, base.cache, hardware, progress)
    pairs = zip(data.images, data.targets.tolist(), strict=True)
    _write_truth(base.truth, {image.sha256: data.classes[target] for image, target in pairs}, data.people)


@contextlib.contextmanager
def _making(base: Base, config: Config) -> Iterator[Project]:
    """Open a new workspace; at the end the base keeps its database."""
    base.folder.mkdir(parents=True, exist_ok=True)
    with Project(base.folder, config, {}, base.cache) as project:
        upgrade_database(project)
        yield project
        backup_database(project, base.database)


def _digest_files(place: Path) -> str:
    """Return the digest of a folder or a table and of its images."""
    images = sorted(expand([str(place)]), key=PurePosixPath) if place.is_dir() else [str(place), *listed_images(place)]
    return digest_of([(image, content_hash(image)) for image in images])


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
            known = _labels(tested, test, classes)
            record_imported(session, known, judge_of(project.config.project), "test", now)


def _labels(files: Sequence[ImageFile], rows: LabeledRows, classes: Sequence[str]) -> dict[str, str]:
    targets: list[int] = np.asarray(rows.targets).tolist()
    return {file.sha256: classes[target] for file, target in zip(files, targets, strict=True)}


def _write_truth(path: Path, labels: Mapping[str, str], people: RealPeople | None) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("sha256", "label", *(() if people is None else people.names)))
    answers: Sequence[tuple[str | None, ...]] = [()] * len(labels) if people is None else people.answers
    writer.writerows((*pair, *said) for pair, said in zip(labels.items(), answers, strict=True))
    write_bytes(path, text.getvalue().encode())
