"""Predictions of images as rows: what is said about each image, also about those that cannot be read."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from alloop.engine.device import explained_shortage
from alloop.engine.predictions import Predictions
from alloop.loop.intake.reach import check_reachable
from alloop.loop.using.model import OpenedModel
from alloop.loop.using.row_files import RowWriter
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
    """Return all images of the pool, of every split.

    Raises:
        SourceUnreachable: A large part of the pool is missing.
    """
    with reading(project.database) as session:
        check_reachable(session, project)
        refs, missing = list_refs(session), list_missing(session)
    gone = [(place.path, place.sha256, place.reason or "the file is missing") for place in missing]
    return Images(refs, len(refs), gone)


def columns_of(model: OpenedModel, top: int | None) -> pa.Schema:
    """Return the columns of the rows, with their types.

    Columns of classes come last: `p_` and the name of each class; with `top`, pairs `class_1`, `probability_1` and so
    on, the most probable class first.
    """
    types = {name: pa.string() for name in FIRST}
    types |= {"probability": pa.float32(), "entropy": pa.float32(), "suspect": pa.bool_()}
    if top is None:
        return pa.schema(types | {f"p_{name}": pa.float32() for name in model.record.classes})
    for place in range(1, min(top, len(model.record.classes)) + 1):
        types |= {f"class_{place}": pa.string(), f"probability_{place}": pa.float32()}
    return pa.schema(types)


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

    def write(told: Mapping[str, pa.Array], n: int) -> None:
        told = {**told, "model": pa.repeat(model.record.name, n)}
        values = [told[name] if name in told else pa.nulls(n, columns.field(name).type) for name in columns.names]
        rows = pa.RecordBatch.from_arrays(values, schema=columns)
        _count(tally, rows)
        for writer in writers:
            writer.write(rows)

    for batch in model.classifier.predict(stream(), say):
        reasons = dict(batch.failed)
        places = {image.image_id: place for place, image in enumerate(batch.images)}
        numbers = [number for number in named if number in places or number in reasons]
        known = [named.pop(number) for number in numbers]
        told = _told(model, batch, labels, top)
        if numbers != list(places):
            order = pa.array(map(places.get, numbers), pa.int64())
            told = {name: values.take(order) for name, values in told.items()}
            sha256s = zip(known, told["sha256"].to_pylist(), strict=True)
            told["sha256"] = _texts(sha256 or own for (_, sha256), own in sha256s)
            told["reason"] = _texts(map(reasons.get, numbers))
        write({**told, "file": _texts(location for location, _ in known)}, len(numbers))
    gone = zip(("file", "sha256", "reason"), zip(*images.gone, strict=True), strict=False)
    write({name: _texts(values) for name, values in gone}, len(images.gone))
    return tally


def _texts(values: Iterable[str | None]) -> pa.Array:
    return pa.array(values, pa.string())


def _told(model: OpenedModel, batch: Predictions, labels: Mapping[str, str], top: int | None) -> dict[str, pa.Array]:
    """Return what is said about the images of a batch that could be read: column → values."""
    probs, above = batch.log_probs.double().exp().float(), model.suspect_above
    sha256s = [image.sha256 for image in batch.images]
    told: dict[str, pa.Array] = {
        "sha256": _texts(sha256s),
        "predicted": _texts(batch.guesses),
        "probability": pa.array(probs.amax(dim=1).numpy()),
        "entropy": pa.array(batch.entropy.numpy()),
        "label": _texts(map(labels.get, sha256s)),
    }
    if above is not None and batch.ood is not None:
        told["suspect"] = pa.array((batch.ood.double() > above).numpy())
    if top is None:
        shares = zip(batch.classes, probs.T.contiguous().numpy(), strict=True)
        return told | {f"p_{name}": pa.array(column) for name, column in shares}
    best = probs.topk(min(top, probs.shape[1]), dim=1)
    classes = _texts(batch.classes)
    ranked = zip(best.indices.T.contiguous().numpy(), best.values.T.contiguous().numpy(), strict=True)
    for rank, (positions, column) in enumerate(ranked, start=1):
        told |= {f"class_{rank}": classes.take(pa.array(positions)), f"probability_{rank}": pa.array(column)}
    return told


def _count(tally: Tally, rows: pa.RecordBatch) -> None:
    for pair in rows["predicted"].drop_null().value_counts().to_pylist():
        tally.predicted[pair["values"]] += pair["counts"]
    tally.suspects += rows["suspect"].true_count
    bad = rows.filter(rows["reason"].is_valid()).select(["file", "reason"])
    tally.unreadable += bad.num_rows
    if bad.num_rows and not tally.example:
        first = bad.slice(length=1).to_pylist()[0]
        tally.example = f"{first['file']}: {first['reason']}"
