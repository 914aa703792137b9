"""Predictions of images as rows: what is said about each image, also about those that cannot be read."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from alloop.engine.classifier import Predictions
from alloop.engine.device import explained_shortage
from alloop.loop.using.model import OpenedModel
from alloop.loop.using.row_files import Cell, Columns, RowWriter
from alloop.progress import Progress, silent
from alloop.project import Project
from alloop.records import ImageRef
from alloop.store.annotations import find_classes
from alloop.store.images import find_image_ids, list_missing, list_refs
from alloop.store.session import reading

FIRST = ("file", "sha256", "predicted", "probability", "entropy", "suspect", "label", "model", "reason")


@dataclasses.dataclass(frozen=True)
class Images:
    """Images to predict.

    Attributes:
        items: Images of the pool, and locations of others.
        total: Number of them; 0 if it is not known.
        gone: (location, sha256, reason) of images of the pool that have no file.
        left_out: Number of files in folders that are plainly not images.
    """

    items: Iterable[ImageRef | str]
    total: int = 0
    gone: Sequence[tuple[str, str | None, str]] = ()
    left_out: int = 0


@dataclasses.dataclass
class Tally:
    """Numbers of images: those with a prediction, by predicted class, and those that could not be read.

    Attributes:
        example: One of those that could not be read, with the reason.
    """

    predicted: Counter[str] = dataclasses.field(default_factory=Counter)
    suspects: int = 0
    unreadable: int = 0
    example: str = ""

    @property
    def images(self) -> int:
        """Number of images with a prediction."""
        return self.predicted.total()


def pool_images(project: Project) -> Images:
    """Return all images of the pool, of every split."""
    with reading(project.database) as session:
        refs, missing = list_refs(session), list_missing(session)
    gone = [(place.path, place.sha256, place.reason or "the file is missing") for place in missing]
    return Images(refs, len(refs), gone)


def columns_of(model: OpenedModel, top: int | None) -> Columns:
    """Return the columns of the rows, with their types.

    Columns of classes come last: `p_` and the name of each class; with `top`, pairs `class_1`, `probability_1` and so
    on, the most probable class first.
    """
    types: dict[str, type] = dict.fromkeys(FIRST, str)
    types |= {"probability": float, "entropy": float, "suspect": bool}
    if top is None:
        return types | {f"p_{name}": float for name in model.record.classes}
    for place in range(1, min(top, len(model.record.classes)) + 1):
        types |= {f"class_{place}": str, f"probability_{place}": float}
    return types


@explained_shortage()
def predict_images(
    project: Project,
    model: OpenedModel,
    images: Images,
    writers: Sequence[RowWriter],
    *,
    top: int | None = None,
    progress: Progress = silent,
) -> Tally:
    """Predict images and write a row for each, in the order given; memory is O(batch).

    Args:
        project: The workspace, whose labels are shown; it is only read.
        model: The model.
        images: The images.
        writers: Receive the rows, with the columns of `columns_of`.
        top: Number of classes with their probabilities; None: all, in the order of the model.
        progress: Receives the progress.

    Raises:
        ModelError: The model does not fit the workspace any more.
    """
    tally, columns = Tally(), columns_of(model, top)
    named: dict[int, tuple[str, str | None]] = {}  # id → location and hash of the images on their way

    def stream() -> Iterator[ImageRef | str]:
        for number, image in enumerate(images.items):
            if isinstance(image, ImageRef):
                named[image.image_id] = image.path, image.sha256
            else:
                named[number] = image, None
            yield image

    def say(label: str, done: int, total: int) -> None:
        progress(label, done, images.total if label == "predict" else total)

    def write(rows: Sequence[Mapping[str, Cell]]) -> None:
        for writer in writers:
            writer.write(rows)

    for batch in model.classifier.predict(stream(), say):
        found = _rows(project, model, batch, top)
        reasons = dict(batch.failed)
        rows: list[Mapping[str, Cell]] = []
        for number in [number for number in named if number in found or number in reasons]:
            location, sha256 = named.pop(number)
            told = found.get(number) or {"sha256": sha256, "reason": reasons[number]}
            rows.append({**dict.fromkeys(columns), "model": model.record.name, **told, "file": location})
        _count(tally, rows)
        write(rows)
    lost = [
        {**dict.fromkeys(columns), "file": file, "sha256": sha256, "model": model.record.name, "reason": reason}
        for file, sha256, reason in images.gone
    ]
    _count(tally, lost)
    write(lost)
    return tally


def _rows(project: Project, model: OpenedModel, batch: Predictions, top: int | None) -> dict[int, dict[str, Cell]]:
    """Return image id → what is said about the image."""
    probs = batch.log_probs.double().exp()
    highest, ranked = probs.max(dim=1).values.tolist(), None
    if top is not None:
        ranked = probs.topk(min(top, probs.shape[1]), dim=1)
    labels = _labels(project, [image.sha256 for image in batch.images])
    bound, classes = model.suspect_above, batch.classes
    suspect = [None] * len(batch.images) if bound is None else (batch.ood.double() > bound).tolist()
    entropy, guesses = batch.entropy.tolist(), batch.guesses.tolist()
    rows: dict[int, dict[str, Cell]] = {}
    for place, image in enumerate(batch.images):
        rows[image.image_id] = {
            "sha256": image.sha256,
            "predicted": guesses[place],
            "probability": highest[place],
            "entropy": entropy[place],
            "suspect": suspect[place],
            "label": labels.get(image.sha256),
        }
    columns = [f"p_{name}" for name in classes]
    for place, image in enumerate(batch.images):
        if ranked is None:
            rows[image.image_id] |= zip(columns, probs[place].tolist(), strict=True)
        else:
            best = zip(ranked.indices[place].tolist(), ranked.values[place].tolist(), strict=True)
            for rank, (position, share) in enumerate(best, start=1):
                rows[image.image_id] |= {f"class_{rank}": classes[position], f"probability_{rank}": share}
    return rows


def _labels(project: Project, sha256s: Sequence[str]) -> dict[str, str]:
    """Return content hash → people's label, for images of the pool that have one."""
    with reading(project.database) as session:
        ids = find_image_ids(session, sha256s)
        classes = find_classes(session, ids.values())
    return {sha256: classes[image_id] for sha256, image_id in ids.items() if image_id in classes}


def _count(tally: Tally, rows: Iterable[Mapping[str, Cell]]) -> None:
    for row in rows:
        if row["reason"] is None:
            tally.predicted[str(row["predicted"])] += 1
            tally.suspects += bool(row["suspect"])
        else:
            tally.unreadable += 1
            tally.example = tally.example or f"{row['file']}: {row['reason']}"
