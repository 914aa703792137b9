"""Predictions of images as rows: what is said about each image, also about those that cannot be read."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from alloop.engine.classifier import Predictions
from alloop.engine.device import explained_shortage
from alloop.loop.using.model import OpenedModel
from alloop.loop.using.row_files import Cell, Columns, Rows, RowWriter
from alloop.progress import Progress, silent
from alloop.project import Project
from alloop.records import ImageRef
from alloop.store.annotations import list_classes_by_hash
from alloop.store.images import list_missing, list_refs
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
    """Predict images and write a row for each, in the order given. Memory is O(batch), besides people's labels.

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
    with reading(project.database) as session:
        labels = list_classes_by_hash(session)

    def stream() -> Iterator[ImageRef | str]:
        for number, image in enumerate(images.items):
            if isinstance(image, ImageRef):
                named[image.image_id] = image.path, image.sha256
            else:
                named[number] = image, None
            yield image

    def say(label: str, done: int, total: int) -> None:
        progress(label, done, images.total if label == "predict" else total)

    def write(rows: Rows) -> None:
        _count(tally, rows)
        for writer in writers:
            writer.write(rows)

    for batch in model.classifier.predict(stream(), say):
        reasons = dict(batch.failed)
        places = {image.image_id: place for place, image in enumerate(batch.images)}
        numbers = [number for number in named if number in places or number in reasons]
        known = [named.pop(number) for number in numbers]
        told = _told(model, batch, labels, top)
        rows = {
            name: [None if place is None else values[place] for place in map(places.get, numbers)]
            for name, values in told.items()
        }
        rows["sha256"] = [sha256 or own for (_, sha256), own in zip(known, rows["sha256"], strict=True)]
        rows |= {"file": [location for location, _ in known], "reason": [reasons.get(number) for number in numbers]}
        write({name: rows.get(name, [model.record.name] * len(numbers)) for name in columns})
    gone = dict(zip(("file", "sha256", "reason"), map(list, zip(*images.gone, strict=True)), strict=False))
    n = len(images.gone)
    write({name: gone.get(name, [model.record.name if name == "model" else None] * n) for name in columns})
    return tally


def _told(
    model: OpenedModel, batch: Predictions, labels: Mapping[str, str], top: int | None
) -> dict[str, Sequence[Cell]]:
    """Return what is said about the images of a batch that could be read: column → values."""
    probs = batch.log_probs.double().exp()
    n, n_classes = probs.shape
    sha256s = [image.sha256 for image in batch.images]
    told: dict[str, Sequence[Cell]] = {
        "sha256": sha256s,
        "predicted": batch.guesses.tolist(),
        "probability": probs.amax(dim=1).tolist(),
        "entropy": batch.entropy.tolist(),
        "suspect": [None] * n if model.suspect_above is None else (batch.ood.double() > model.suspect_above).tolist(),
        "label": [labels.get(sha256) for sha256 in sha256s],
    }
    if top is None:
        shares = zip(batch.classes, probs.T.tolist(), strict=True)
        return told | {f"p_{name}": column for name, column in shares}
    best = probs.topk(min(top, n_classes), dim=1)
    ranked = zip(best.indices.T.tolist(), best.values.T.tolist(), strict=True)
    for rank, (positions, column) in enumerate(ranked, start=1):
        told[f"class_{rank}"] = [batch.classes[position] for position in positions]
        told[f"probability_{rank}"] = column
    return told


def _count(tally: Tally, rows: Rows) -> None:
    bad = [place for place, reason in enumerate(rows["reason"]) if reason is not None]
    tally.predicted.update(str(name) for name in rows["predicted"] if name is not None)
    tally.suspects += sum(map(bool, rows["suspect"]))
    tally.unreadable += len(bad)
    if bad and not tally.example:
        tally.example = f"{rows['file'][bad[0]]}: {rows['reason'][bad[0]]}"
