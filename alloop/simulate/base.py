"""The workspace that every cell of a simulation starts from: pool, test set, truth and features, prepared once."""

import contextlib
import csv
import dataclasses
import datetime as dt
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from alloop.config.load import set_values
from alloop.config.schema import Config
from alloop.engine.build import build_backbone, build_hardware, search_paths
from alloop.engine.features import ensure_features
from alloop.errors import PoolError
from alloop.executor import Executor
from alloop.files import sha256_of, write_bytes
from alloop.loop.intake.ingest import add_images
from alloop.loop.intake.labels import ImportedLabel, judge_of, listed_files, record_imported
from alloop.loop.intake.test_set import ensure_test_set
from alloop.loop.workbench import make_tools, open_workbench
from alloop.loop.workspace import backup_database, upgrade_database
from alloop.pool.cache import FeatureCache
from alloop.pool.given import given_files
from alloop.pool.ingest import expand
from alloop.progress import Progress, silent
from alloop.project import Project
from alloop.records import ImageFile, LocationStatus, Split
from alloop.simulate.cells import digest_of
from alloop.simulate.features_file import GivenData, LabeledRows
from alloop.simulate.labeled import LabeledImages
from alloop.simulate.real_people import RealPeople
from alloop.store.images import add_apart, list_locations, list_refs, raise_depth, set_split
from alloop.store.session import transaction

TEST = Path("test")  # what [evaluation] test says where the test set is in the base already


@dataclasses.dataclass(frozen=True)
class Base:
    """Files that cells copy or share.

    Attributes:
        database: Copied by each cell.
        truth: `sha256,label` of the pool, in the order of its rows; then a column of answers for each real person.
        cache: Features, shared; what was expensive to compute lies where it is kept.
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
        """Content hash → class, in the order of the rows."""
        with self.truth.open(encoding="utf-8", newline="") as lines:
            return {row["sha256"]: row["label"] for row in csv.DictReader(lines)}


@dataclasses.dataclass(frozen=True)
class Source:
    """What is simulated on.

    Attributes:
        config: The settings, made to fit the data.
        digest: Of all data.
        about: It in a sentence.
        base: Where the base is, or will be.
        prepare: Makes the base.
        names: What the rows are called, where they have names.
    """

    config: Config
    digest: str
    about: str
    base: Base
    prepare: Callable[[Executor, Progress], None]
    names: tuple[str, ...] | None = None


def given_source(config: Config, data: GivenData, scratch: Path) -> Source:
    """Rows of an array."""
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
    """Labeled images.

    Args:
        config: Its backbone looks at them.
        data: The pool.
        test: A folder per class or a CSV, only measured on; None: holdouts are drawn.
        cache: Where features are kept.
        scratch: Folder of the base.
        device: Overrides [model] device.
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
    # Only where there are people: what was computed without them is found again.
    digest = digest_of(content if data.people is None else [*content, dataclasses.astuple(data.people)])
    measured = "a random holdout" if test is None else str(test)
    about = f"{len(names)} images of {len(data.classes)} classes, measured on {measured}.{_asked(fitted, data.people)}"
    paths = tuple(image.path for image in data.images)

    def prepare(executor: Executor, progress: Progress) -> None:
        prepare_images(base, data, fitted, executor, device, progress)

    return Source(fitted, digest, about, base, prepare, paths)


def given_config(config: Config, data: GivenData) -> Config:
    """Settings for a pool of features: what shapes heads, training and asking stays; what is about images does not."""
    return set_values(
        config,
        project={"classes": list(data.classes)},
        pool={"images": [], "near_duplicates": False},
        model={"backbone": f"features:{data.pool.features.shape[1]}", "weights": "none", "image_size": None},
        evaluation={"test": None if data.test is None else str(TEST)},
    )


def pure_config(config: Config, people: RealPeople | None = None) -> Config:
    """What is the same in every cell of a simulation: the oracle answers, and nothing but the rounds ends it.

    The first batch is drawn at random, so that all strategies of a seed start from the same labels.

    Args:
        config: Settings.
        people: Whose answers the truth's file holds, if anybody's.

    Raises:
        LabelError: An image has fewer answers than are asked for.
    """
    n_answers = config.labeling.annotations_per_image
    oracle = config.labeling.oracle.model_dump() | {
        "file": "../base/truth.csv",
        "columns": () if people is None else people.names,
    }
    if people is None:  # made-up people are as many as must answer
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
    """A base whose images are rows of an array.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    pool = given_files(data.pool.features)
    tested = [] if data.test is None else given_files(data.test.features, first=len(pool))
    cache = FeatureCache(base.cache / "features", build_backbone(config).fingerprint(), data.pool.features.shape[1])
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
    """A base whose images are files, with a test set if the settings name one, and features if the trunk is frozen.

    Raises:
        PoolError: Images that cannot be read; all strategies must see the same ones.
        LabelError: The test set has a class that the pool does not have.
    """
    with _making(base, config) as project:
        with open_workbench(make_tools(project, executor, progress)) as bench:
            add_images(bench, [image.path for image in data.images])
            ensure_test_set(bench)
        with transaction(project.database) as session:
            # Labeled images of a workspace are read at the workspace's depth.
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
            hardware = build_hardware(config, device)
            ensure_features(refs, build_backbone(config, search_paths(base.cache)), base.cache, hardware, progress)
    pairs = zip(data.images, data.targets.tolist(), strict=True)
    _write_truth(base.truth, {image.sha256: data.classes[target] for image, target in pairs}, data.people)


@contextlib.contextmanager
def _making(base: Base, config: Config) -> Iterator[Project]:
    """A new workspace, of which the base keeps the database as it is in the end."""
    base.folder.mkdir(parents=True, exist_ok=True)
    with Project(base.folder, config, {}, base.cache) as project:
        upgrade_database(project)
        yield project
        backup_database(project, base.database)


def _digest_files(place: Path) -> str:
    """Of a folder or a table, and of the images that it names."""
    files = sorted(expand([str(place)])) if place.is_dir() else [place, *listed_files(place)]
    return digest_of([(str(file), sha256_of(file)) for file in files])


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
