"""Annotations as given, with annotator and time, and the labels derived from them."""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Select, and_, delete, func, insert, select, update
from sqlalchemy.orm import Session

from alloop.records import Answer, Consensus, LocationStatus, Outcome, Split
from alloop.store.images import split_of_label
from alloop.store.session import in_chunks
from alloop.store.tables import Annotation, AutoLabel, Image, ImageLocation, Label


@dataclasses.dataclass(frozen=True, slots=True)
class AnnotationRecord:
    """Version of an answer, with its image and its query.

    Attributes:
        source: Labeling back end that the answer came from, or "import".
    """

    image_id: int
    query_id: int | None
    source: str
    version: int
    answer: Answer


@dataclasses.dataclass(frozen=True, slots=True)
class LabelRecord:
    """Label of one image. `path` is where the image file is, or where it was last seen."""

    image_id: int
    sha256: str
    split: Split
    consensus: Consensus
    path: str | None


def add_annotations(session: Session, records: Sequence[AnnotationRecord], now: dt.datetime) -> None:
    """Append annotations."""
    rows = [_row(record, now) for record in records]
    if rows:
        session.execute(insert(Annotation), rows)


def list_current(
    session: Session,
    *,
    image_ids: Iterable[int] | None = None,
    query_ids: Iterable[int] | None = None,
    source: str | None = None,
    adopted: bool = False,
) -> list[AnnotationRecord]:
    """List the newest version of every annotation, tombstones included, by image and time.

    With `adopted`, list only annotations without a query.
    """
    query = _current()
    if adopted:
        query = query.where(Annotation.query_id.is_(None))
    if source is not None:
        query = query.where(Annotation.source == source)
    if image_ids is None and query_ids is None:
        return _records(session, query)
    column = Annotation.image_id if image_ids is not None else Annotation.query_id
    wanted = list(image_ids if image_ids is not None else query_ids or ())
    found: list[AnnotationRecord] = []
    for chunk in in_chunks(wanted):
        found += _records(session, query.where(column.in_(chunk)))
    return found


def set_labels(session: Session, labels: Mapping[int, Consensus | None], now: dt.datetime) -> None:
    """Replace the labels of these images; None removes the label.

    A label that does not change keeps its row and the time at which it was derived. The automatic label of an image
    that gets a label is withdrawn.
    """
    known: dict[int, Consensus] = {}
    for chunk in in_chunks(labels):
        query = select(Label.image_id, Label.class_name, Label.agreement, Label.n_annotations)
        rows = session.execute(query.where(Label.image_id.in_(chunk)))
        known |= {image_id: Consensus(value, agreement, n) for image_id, value, agreement, n in rows}
    labels = {image_id: label for image_id, label in labels.items() if known.get(image_id) != label}
    for chunk in in_chunks(image_id for image_id in labels if image_id in known):
        session.execute(delete(Label).where(Label.image_id.in_(chunk)))
    fresh = [
        {
            "image_id": image_id,
            "class_name": label.value,
            "agreement": label.agreement,
            "n_annotations": label.n,
            "derived_at": now,
        }
        for image_id, label in labels.items()
        if label is not None
    ]
    if fresh:
        session.execute(insert(Label), fresh)
    for chunk in in_chunks(image_id for image_id, label in labels.items() if label is not None):
        is_active = AutoLabel.withdrawn_at.is_(None)
        session.execute(update(AutoLabel).where(AutoLabel.image_id.in_(chunk), is_active).values(withdrawn_at=now))


def list_labels(session: Session, split: Split | None = None) -> list[LabelRecord]:
    """List the labels by content hash, an order that does not depend on how the database was filled."""
    paths = select(func.min(ImageLocation.path)).where(ImageLocation.image_id == Image.id).correlate(Image)
    there = paths.where(ImageLocation.status == LocationStatus.OK.value)
    path = func.coalesce(there.scalar_subquery(), paths.scalar_subquery())
    query = (
        select(Image.id, Image.sha256, Image.split, Label.class_name, Label.agreement, Label.n_annotations, path)
        .join(Label, Label.image_id == Image.id)
        .order_by(Image.sha256)
    )
    if split is not None:
        query = query.where(Image.split == split.value)
    splits = {one.value: one for one in Split}
    return [
        LabelRecord(image_id, sha256, splits[where], Consensus(class_name, agreement, n), first_path)
        for image_id, sha256, where, class_name, agreement, n, first_path in session.execute(query)
    ]


def list_classes_by_hash(session: Session, *, with_junk: bool = True) -> dict[str, str]:
    """Return content hash → class of every image with a label. Labels of junk are kept, but count for nothing."""
    query = select(Image.sha256, Label.class_name).join(Label, Label.image_id == Image.id)
    if not with_junk:
        query = query.where(Image.split != Split.JUNK.value)
    return {sha256: class_name for sha256, class_name in session.execute(query)}


def find_classes(session: Session, image_ids: Iterable[int]) -> dict[int, str]:
    """Find the labels of images: image id → class. Images without a label are absent."""
    found: dict[int, str] = {}
    for chunk in in_chunks(image_ids):
        rows = session.execute(select(Label.image_id, Label.class_name).where(Label.image_id.in_(chunk)))
        found.update({image_id: class_name for image_id, class_name in rows})
    return found


def list_class_counts(session: Session, split: Split) -> dict[str, int]:
    """Return class → number of labels."""
    query = select(Label.class_name, func.count()).where(split_of_label() == split.value).group_by(Label.class_name)
    return {name: n for name, n in session.execute(query)}


def list_annotator_counts(session: Session) -> dict[str, dict[str, int]]:
    """Return annotator → outcome → number of current answers."""
    current = _current().subquery()
    query = (
        select(current.c.annotator, current.c.outcome, func.count())
        .where(current.c.outcome != Outcome.DELETED.value)
        .group_by(current.c.annotator, current.c.outcome)
        .order_by(current.c.annotator)
    )
    counts: dict[str, dict[str, int]] = {}
    for annotator, outcome, n in session.execute(query):
        counts.setdefault(annotator, {})[outcome] = n
    return counts


def list_lead_times(session: Session) -> list[float]:
    """Return the seconds that each current label took, if the back end reports them."""
    current = _current().subquery()
    where = (current.c.outcome == Outcome.LABEL.value, current.c.lead_time.is_not(None))
    return [float(seconds) for seconds in session.scalars(select(current.c.lead_time).where(*where))]


def count_disputed(session: Session, split: Split) -> tuple[int, int]:
    """Return (number of disputed labels, number of labels given by several people)."""
    query = select(Label.agreement, Label.n_annotations).join(Image, Image.id == Label.image_id)
    rows = session.execute(query.where(Image.split == split.value, Label.n_annotations > 1)).all()
    return sum(agreement < 1 for agreement, _ in rows), len(rows)


def list_values(session: Session) -> dict[str, int]:
    """Return value → number of current annotations with it, whether it is a class or not."""
    current = _current().subquery()
    query = (
        select(current.c.value, func.count()).where(current.c.outcome == Outcome.LABEL.value).group_by(current.c.value)
    )
    return {value: n for value, n in session.execute(query)}


def _current() -> "Select[Annotation]":
    versions = select(Annotation.source, Annotation.external_id, func.max(Annotation.version).label("version"))
    newest = versions.group_by(Annotation.source, Annotation.external_id).subquery()
    same = and_(
        Annotation.source == newest.c.source,
        Annotation.external_id == newest.c.external_id,
        Annotation.version == newest.c.version,
    )
    return select(Annotation).join(newest, same).order_by(Annotation.image_id, Annotation.answered_at, Annotation.id)


def _row(record: AnnotationRecord, now: dt.datetime) -> dict[str, object]:
    answer = record.answer
    return {
        "image_id": record.image_id,
        "query_id": record.query_id,
        "source": record.source,
        "external_id": answer.external_id,
        "version": record.version,
        "annotator": answer.annotator,
        "outcome": answer.outcome.value,
        "value": answer.value,
        "lead_time": answer.lead_time,
        "answered_at": answer.updated_at,
        "recorded_at": now,
    }


def _records(session: Session, query: "Select[Annotation]") -> list[AnnotationRecord]:
    # Columns instead of objects: all annotations of a pool are read in every round.
    rows = session.execute(
        query.with_only_columns(
            Annotation.image_id,
            Annotation.query_id,
            Annotation.source,
            Annotation.version,
            Annotation.external_id,
            Annotation.annotator,
            Annotation.outcome,
            Annotation.value,
            Annotation.answered_at,
            Annotation.lead_time,
        )
    )
    outcomes = {outcome.value: outcome for outcome in Outcome}
    return [
        AnnotationRecord(image, query_id, source, version, Answer(own_id, who, outcomes[outcome], value, at, lead_time))
        for image, query_id, source, version, own_id, who, outcome, value, at, lead_time in rows
    ]
