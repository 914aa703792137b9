"""Labeled images for a comparison, from a folder per class, a CSV or a workspace; and how they are split."""

import csv
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alloop.errors import LabelError
from alloop.files import sha256_of
from alloop.pool.ingest import expand
from alloop.progress import Progress, silent
from alloop.project import Project
from alloop.records import ImageRef, Split
from alloop.seeds import derive_seed
from alloop.store.annotations import LabelRecord, list_labels
from alloop.store.session import reading

Positions = npt.NDArray[np.int64]

TEST_SHARE, CALIBRATION_SHARE = 0.4, 0.2
FEWEST = 10  # labeled images that can be split into anything


@dataclasses.dataclass(frozen=True)
class LabeledImages:
    """Images and what they show.

    Attributes:
        classes: Names in the order of a model's outputs [K].
        images: Each content once.
        targets: Positions in `classes` [N].
        is_holdout: The workspace's own holdout [N]; None where there is none.
    """

    classes: tuple[str, ...]
    images: tuple[ImageRef, ...]
    targets: npt.NDArray[np.int64]
    is_holdout: npt.NDArray[np.bool_] | None = None


@dataclasses.dataclass(frozen=True)
class Parts:
    """Positions of what one seed trains on, calibrates with and is measured on. They never overlap.

    Without a calibration part the calibrator is cross-fitted on the test part: no image is calibrated by itself.
    """

    train: Positions
    calibration: Positions
    test: Positions


def read_folder(folder: Path, progress: Progress = silent) -> LabeledImages:
    """A folder with one folder per class; whatever lies below a class's folder belongs to it.

    Raises:
        LabelError: Fewer than two classes or too few images; the same image in two classes.
    """
    kinds = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(kinds) < 2:
        raise LabelError(
            f"{folder} holds {len(kinds)} folders; a comparison needs one folder per class, and two classes at least.",
            "Move the images into folders named like their classes, or give a CSV with --csv.",
        )
    pairs = [(str(file), kind.name) for kind in kinds for file in expand([str(kind)])]
    return _labeled(pairs, str(folder), progress)


def read_csv(path: Path, progress: Progress = silent) -> LabeledImages:
    """A CSV with the columns `file` (relative to the CSV, or in full) and `label`.

    Raises:
        LabelError: A column or a file is missing; too few images; the same image with two labels.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path} cannot be read: {error}.") from error
    reader = csv.DictReader(text.splitlines(keepends=True))
    if not {"file", "label"} <= set(reader.fieldnames or ()):
        raise LabelError(
            f"{path} has the columns {', '.join(reader.fieldnames or ()) or 'none'}.", "It needs 'file' and 'label'."
        )
    pairs = []
    for row in reader:
        file, label = path.absolute().parent / (row["file"] or ""), (row["label"] or "").strip()
        if not label or not file.is_file():
            what = "has no label" if not label else f"names {file}, which is not there"
            raise LabelError(f"{path}, line {reader.line_num} {what}.", "Correct the file.")
        pairs.append((str(file), label))
    return _labeled(pairs, str(path), progress)


def read_workspace(project: Project) -> LabeledImages:
    """Every label of a workspace, with its holdout marked.

    Raises:
        LabelError: Too few labels.
    """
    classes = project.config.project.classes
    with reading(project.database) as session:
        labels = [label for label in list_labels(session) if _is_usable(label, classes)]
    if len(labels) < FEWEST:
        raise LabelError(
            f"The workspace has {len(labels)} labels; a comparison needs at least {FEWEST}.",
            "Label more images, or name a labeled folder with --folder or a table with --csv.",
        )
    return LabeledImages(
        classes=classes,
        images=tuple(ImageRef(label.image_id, label.sha256, str(label.path)) for label in labels),
        targets=np.array([classes.index(label.class_name) for label in labels], dtype=np.int64),
        is_holdout=np.array([label.split is Split.HOLDOUT for label in labels]),
    )


def split_stratified(targets: npt.NDArray[np.int64], seed: int, n_labels: int | None = None) -> Parts:
    """Draw test, calibration and training parts with the classes in proportion.

    Args:
        targets: Class positions [N].
        seed: Another one gives another split; all methods share it.
        n_labels: Images to train on; None: all that are left.

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


def _interleave(targets: npt.NDArray[np.int64], seed: int) -> Positions:
    """A random order of which every piece has the classes in proportion, as far as whole images allow."""
    generator = np.random.default_rng(derive_seed(seed, "compare", "split"))
    place = np.empty(len(targets))
    for target in np.unique(targets):
        mine = generator.permutation(np.flatnonzero(targets == target))
        # Systematic sampling: one image per 1/n of the order, from a random start.
        place[mine] = (np.arange(len(mine)) + generator.random()) / len(mine)
    return np.argsort(place, kind="stable").astype(np.int64)


def _some(train: Positions, n_labels: int | None) -> Positions:
    if n_labels is not None and n_labels > len(train):
        raise LabelError(
            f"{n_labels} training labels were asked for, but {len(train)} are left for training.",
            f"Take --labels {len(train)} or fewer.",
        )
    return train[:n_labels]


def _labeled(pairs: Sequence[tuple[str, str]], source: str, progress: Progress) -> LabeledImages:
    by_content: dict[str, tuple[str, str]] = {}
    for number, (path, label) in enumerate(pairs, start=1):
        progress("read images", number, len(pairs))
        sha256 = sha256_of(Path(path))
        known_path, known = by_content.setdefault(sha256, (path, label))
        if known != label:
            raise LabelError(
                f"{source}: {path} is '{label}', but {known_path}, which holds the same bytes, is '{known}'.",
                "Keep one of the two.",
            )
    _check_counts([label for _, label in by_content.values()], source)
    classes = tuple(sorted({label for _, label in by_content.values()}))
    return LabeledImages(
        classes=classes,
        images=tuple(ImageRef(n, sha256, path) for n, (sha256, (path, _)) in enumerate(by_content.items(), start=1)),
        targets=np.array([classes.index(label) for _, label in by_content.values()], dtype=np.int64),
    )


def _check_counts(labels: Iterable[str], source: str) -> None:
    counts: Mapping[str, int] = Counter(labels)
    if len(counts) < 2 or sum(counts.values()) < FEWEST:
        raise LabelError(
            f"{source} holds {sum(counts.values())} images of {len(counts)} classes.",
            f"A comparison needs at least {FEWEST} images and two classes.",
        )


def _is_usable(label: LabelRecord, classes: Sequence[str]) -> bool:
    return label.path is not None and label.split is not Split.EXCLUDED and label.class_name in classes
