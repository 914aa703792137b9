"""Labeled images for a comparison, from a folder per class, a CSV or a workspace; and their splits."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alloop.composition import CLASSIFICATION
from alloop.engine.targets import TASKS, encode_known
from alloop.errors import LabelError
from alloop.loop.intake.named_images import find_named
from alloop.names import as_answer, clean
from alloop.pool.depth import share_depth, with_own_depth
from alloop.pool.left_out import is_left_out
from alloop.pool.sources import content_hash, expand
from alloop.progress import Progress, silent
from alloop.project import Project
from alloop.records import ImageRef, Split
from alloop.seeds import derive_seed
from alloop.simulate.real_people import RealPeople
from alloop.spreadsheet import read_table
from alloop.store.annotations import LabelRecord, list_labels
from alloop.store.images import find_refs
from alloop.store.session import reading

Positions = npt.NDArray[np.int64]

TEST_SHARE, CALIBRATION_SHARE = 0.4, 0.2
FEWEST = 10  # smallest number of labeled images that can be split


@dataclasses.dataclass(frozen=True)
class LabeledImages:
    """Images with their classes.

    Attributes:
        classes: Class names in the order of a model's outputs [K].
        images: Images; each content occurs once.
        targets: Positions of the labels in `classes` [N].
        is_holdout: True for images of the workspace's holdout [N]; None without a holdout.
        people: Answers of real people; None if unknown.
    """

    classes: tuple[str, ...]
    images: tuple[ImageRef, ...]
    targets: npt.NDArray[np.int64]
    is_holdout: npt.NDArray[np.bool_] | None = None
    people: RealPeople | None = None


@dataclasses.dataclass(frozen=True)
class Parts:
    """Positions of the training, calibration and test images of one seed. They never overlap.

    Without a calibration part, the calibrator is cross-fitted on the test part: no image is calibrated by itself.
    """

    train: Positions
    calibration: Positions
    test: Positions


def read_folder(folder: Path, progress: Progress = silent, *, may_be_cut: bool = False) -> LabeledImages:
    """Read a folder with one folder per class. All images below a class's folder belong to the class.

    Args:
        folder: Folder to read.
        progress: Called with the number of images read.
        may_be_cut: True to accept incomplete files.

    Raises:
        LabelError: There are fewer than two classes or too few images, or an image is in two classes.
    """
    kinds = sorted(path for path in folder.iterdir() if path.is_dir() and not is_left_out(path))
    if len(kinds) < 2:
        raise LabelError(
            f"{folder} holds {len(kinds)} folders; a comparison needs one folder per class and at least two classes.",
            "Move the images into folders named like their classes, or give a CSV with --csv.",
        )
    rows = [(file, clean(kind.name), ()) for kind in kinds for file in expand([str(kind)])]
    return _labeled(rows, (), str(folder), progress, may_be_cut)


def read_csv(
    path: Path, progress: Progress = silent, people: Sequence[str] = (), *, may_be_cut: bool = False
) -> LabeledImages:
    """Read a CSV with the columns `file` (relative to the CSV, or a full path) and `label`.

    Args:
        path: CSV to read.
        progress: Called with the number of images read.
        people: Columns with answers of real people, one per person. Of copies of an image, the first row counts.
        may_be_cut: True to accept incomplete files.

    Raises:
        LabelError: A column or a file is missing; there are too few images; an image has two labels; an answer is not a
            class; or nobody answered about an image.
    """
    rows = []
    for row in read_table(path, LabelError, ["file", "label", *people]).rows:
        if not row.get("label"):
            raise LabelError(f"{path}, line {row.line} has no label.", "Add the label or remove the line.")
        said = tuple(row.get(person) for person in people)
        rows.append((find_named(path, row), row.get("label"), said))
    return _labeled(rows, tuple(people), str(path), progress, may_be_cut)


def read_workspace(project: Project) -> LabeledImages:
    """Read all labels of a workspace, with its holdout.

    Raises:
        LabelError: There are too few labels.
    """
    classes = project.config.project.classes
    coding = TASKS[project.config.project.task](classes)
    with reading(project.database) as session:
        labels = [label for label in list_labels(session) if _is_usable(label, classes)]
        depths = {image_id: ref.depth for image_id, ref in find_refs(session, [x.image_id for x in labels]).items()}
    if len(labels) < FEWEST:
        raise LabelError(
            f"The workspace has {len(labels)} labels; a comparison needs at least {FEWEST}.",
            "Label more images, or name a labeled folder with --folder or a table with --csv.",
        )
    return LabeledImages(
        classes=classes,
        images=tuple(
            ImageRef(label.image_id, label.sha256, str(label.path), depths.get(label.image_id), is_admitted=True)
            for label in labels
        ),
        targets=coding.array(encode_known(coding, [label.consensus.value for label in labels])),
        is_holdout=np.array([label.split is Split.HOLDOUT for label in labels]),
    )


def split_stratified(targets: npt.NDArray[np.int64], seed: int, n_labels: int | None = None) -> Parts:
    """Draw test, calibration and training parts with the classes in proportion.

    Args:
        targets: Class positions [N].
        seed: Seed of the split, which all methods share.
        n_labels: Number of training images; None: all others.

    Raises:
        LabelError: Fewer images are left than `n_labels`.
    """
    order = _interleave(targets, seed)
    n_test, n_calibration = round(TEST_SHARE * len(order)), round(CALIBRATION_SHARE * len(order))
    train = order[n_test + n_calibration :]
    return Parts(_some(train, n_labels), order[n_test : n_test + n_calibration], order[:n_test])


def split_holdout(
    targets: npt.NDArray[np.int64], is_holdout: npt.NDArray[np.bool_], seed: int, n_labels: int | None = None
) -> Parts:
    """Train on labels outside the holdout, measure on it, calibrate by cross-fitting on it.

    Raises:
        LabelError: The holdout has no labels, or fewer images are left than `n_labels`.
    """
    if not is_holdout.any():
        raise LabelError("No holdout image is labeled yet.", "Label the holdout, or compare with --split stratified.")
    others = np.flatnonzero(~is_holdout)
    train = others[_interleave(targets[others], seed)]
    return Parts(_some(train, n_labels), np.array([], dtype=np.int64), np.flatnonzero(is_holdout))


def draw_folds(targets: npt.NDArray[np.int64], seed: int, n_folds: int, n_labels: int | None = None) -> list[Parts]:
    """Draw the folds of a cross-validation: each image is in one test part, with the classes in proportion.

    Args:
        targets: Class positions [N].
        seed: Seed of the folds.
        n_folds: Number of folds.
        n_labels: Number of training images of each fold; None: all others.

    Raises:
        LabelError: Fewer images are left than `n_labels`.
    """
    order = _interleave(targets, seed)
    tests = np.array_split(order, n_folds)
    nothing = np.array([], dtype=np.int64)
    parts = []
    for test in tests:
        rest = np.setdiff1d(order, test)
        parts.append(Parts(_some(rest[_interleave(targets[rest], seed)], n_labels), nothing, test))
    return parts


def _interleave(targets: npt.NDArray[np.int64], seed: int) -> Positions:
    """Return a random order in which each part has the classes in proportion, as far as possible."""
    generator = np.random.default_rng(derive_seed(seed, "compare", "split"))
    place = np.empty(len(targets))
    for target in np.unique(targets):
        mine = generator.permutation(np.flatnonzero(targets == target))
        # Systematic sampling: one image per 1/n of the order, with a random start.
        place[mine] = (np.arange(len(mine)) + generator.random()) / len(mine)
    return np.argsort(place, kind="stable").astype(np.int64)


def _some(train: Positions, n_labels: int | None) -> Positions:
    if n_labels is not None and n_labels > len(train):
        raise LabelError(
            f"{n_labels} training labels were asked for, but {len(train)} are left for training.",
            f"Take --labels {len(train)} or fewer.",
        )
    return train[:n_labels]


def _labeled(
    rows: Sequence[tuple[str, str, tuple[str, ...]]],
    people: tuple[str, ...],
    source: str,
    progress: Progress,
    may_be_cut: bool,
) -> LabeledImages:
    """Make labeled images from rows of a path, its label and people's answers."""
    by_content: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for number, (path, label, said) in enumerate(rows, start=1):
        progress("read images", number, len(rows))
        sha256 = content_hash(path)
        known_path, known, _ = by_content.setdefault(sha256, (path, label, said))
        if known != label:
            raise LabelError(
                f"{source}: {path} is '{label}', but {known_path}, which holds the same bytes, is '{known}'.",
                "Keep one of the two.",
            )
    paths, labels, answers = zip(*by_content.values(), strict=True) if by_content else ((), (), ())
    _check_counts(labels, source)
    classes = tuple(sorted(set(labels)))
    coding = TASKS[CLASSIFICATION](classes)  # a folder or a table gives one class for each image
    return LabeledImages(
        classes=classes,
        images=_at_one_depth(
            [
                ImageRef(n, *pair, is_admitted=may_be_cut)
                for n, pair in enumerate(zip(by_content, paths, strict=True), start=1)
            ]
        ),
        targets=coding.array(encode_known(coding, labels)),
        people=_real_people(people, answers, paths, classes, source) if people else None,
    )


def _real_people(
    names: tuple[str, ...],
    answers: Sequence[tuple[str, ...]],
    paths: Sequence[str],
    classes: tuple[str, ...],
    source: str,
) -> RealPeople:
    """Return the answers of people about each image.

    Raises:
        LabelError: An answer is not a class, or nobody answered about an image.
    """
    said = tuple(tuple(as_answer(text, classes) for text in row) for row in answers)
    for path, row in zip(paths, said, strict=True):
        if strange := [answer for answer in row if answer is not None and answer not in classes]:
            raise LabelError(
                f"{source}: somebody answered {strange[0]!r} about {path}, but no image has this label.",
                "Correct the answer or remove the row. An empty cell, -1 and NaN mean that a person was not asked.",
            )
        if not any(row):
            raise LabelError(f"{source}: nobody answered about {path}.", "Remove the row, or name other columns.")
    return RealPeople(names, said)


def _at_one_depth(images: Sequence[ImageRef]) -> tuple[ImageRef, ...]:
    (shared,) = share_depth(with_own_depth(images))
    return shared


def _check_counts(labels: Iterable[str], source: str) -> None:
    counts: Mapping[str, int] = Counter(labels)
    if len(counts) < 2 or sum(counts.values()) < FEWEST:
        raise LabelError(
            f"{source} holds {sum(counts.values())} images of {len(counts)} classes.",
            f"A comparison needs at least {FEWEST} images and two classes.",
        )


def _is_usable(label: LabelRecord, classes: Sequence[str]) -> bool:
    return (
        label.path is not None and label.split not in (Split.EXCLUDED, Split.JUNK) and label.consensus.value in classes
    )
