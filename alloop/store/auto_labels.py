"""Automatic labels, and the looks at the holdout labels that allowed them."""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.orm import Session

from alloop.records import LocationStatus, QueryStatus, Reason, Split
from alloop.store.session import in_chunks
from alloop.store.tables import AutoLabel, AutolabelLook, Image, ImageLocation, Label, QueryRow

AUTO = "auto"  # source of automatic labels in exports, where people's labels name theirs


@dataclasses.dataclass(frozen=True, slots=True)
class LookRecord:
    """Look at the holdout labels.

    Attributes:
        number: Number of the look in this workspace, from 1.
        model: Name of the model version whose predictions were tested.
        holdout_digest: SHA-256 of the holdout labels that were looked at.
        max_error: Largest share of errors that is allowed, in (0, 1).
        confidence: Confidence of all looks together, in (0, 1).
        is_classwise: True if the promise holds for each predicted class.
        n_holdout: Number of holdout images that were looked at.
        outcome: Tests of the look, as JSON.
    """

    id: int
    number: int
    model: str
    model_sha256: str
    holdout_digest: str
    max_error: float
    confidence: float
    is_classwise: bool
    n_holdout: int
    outcome: dict[str, Any]
    created_at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class AutoLabelRecord:
    """Automatic label of one image that no person has labeled.

    Attributes:
        model: Name of the model version that gave it.
        probability: Probability of the class before calibration, in [0, 1].
        threshold: Smallest probability that was accepted.
        look: Number of the look that allowed it.
        path: Place of the image file, or the place where it was last seen.
    """

    id: int
    image_id: int
    sha256: str
    class_name: str
    model: str
    probability: float
    threshold: float
    look: int
    created_at: dt.datetime
    path: str | None

    @property
    def source(self) -> str:
        """Source of the label, in the place where people's labels name their back end."""
        return AUTO


@dataclasses.dataclass(frozen=True, slots=True)
class Audited:
    """Audited automatic label.

    Attributes:
        class_name: Class of the automatic label.
        truth: Class by people's answers; None without one.
        status: Status of the query.
    """

    class_name: str
    truth: str | None
    status: QueryStatus


def add_look(session: Session, values: Mapping[str, Any], now: dt.datetime) -> LookRecord:
    """Record a look, and return it with its number.

    Args:
        session: Session to write in.
        values: Columns of the look, all but `id`, `number` and `created_at`.
        now: Time of the look.
    """
    session.execute(insert(AutolabelLook).values(number=count_looks(session) + 1, created_at=now, **values))
    return list_looks(session)[-1]


def count_looks(session: Session) -> int:
    """Count the looks so far."""
    return session.scalar(select(func.count(AutolabelLook.id))) or 0


def list_looks(session: Session) -> list[LookRecord]:
    """List the looks in order."""
    columns = [AutolabelLook.__table__.c[field.name] for field in dataclasses.fields(LookRecord)]
    return [LookRecord(*row) for row in session.execute(select(*columns).order_by(AutolabelLook.number))]


def add_auto_labels(session: Session, look_id: int, labels: Sequence[Mapping[str, Any]], now: dt.datetime) -> None:
    """Add automatic labels of images without an active one.

    Args:
        session: Session to write in.
        look_id: Look that allows them.
        labels: `image_id`, `class_name`, `probability` and `threshold` of each.
        now: Time to record.
    """
    if labels:
        session.execute(insert(AutoLabel), [{**label, "look_id": look_id, "created_at": now} for label in labels])


def withdraw_auto_labels(session: Session, now: dt.datetime, image_ids: Iterable[int] | None = None) -> int:
    """Withdraw the active automatic labels of these images (None: all of them); return their number."""
    is_active = AutoLabel.withdrawn_at.is_(None)
    if image_ids is None:
        found = session.execute(update(AutoLabel).where(is_active).values(withdrawn_at=now))
        return int(found.rowcount)  # type: ignore[attr-defined]
    n = 0
    for chunk in in_chunks(image_ids):
        found = session.execute(
            update(AutoLabel).where(is_active, AutoLabel.image_id.in_(chunk)).values(withdrawn_at=now)
        )
        n += int(found.rowcount)  # type: ignore[attr-defined]
    return n


def list_auto_labels(session: Session) -> list[AutoLabelRecord]:
    """List the active automatic labels by content hash: those not withdrawn, of images that no person has labeled.

    Images marked as junk are left out; their automatic labels count again when the mark is removed.
    """
    paths = select(func.min(ImageLocation.path)).where(ImageLocation.image_id == Image.id).correlate(Image)
    there = paths.where(ImageLocation.status == LocationStatus.OK.value)
    path = func.coalesce(there.scalar_subquery(), paths.scalar_subquery())
    query = (
        select(
            AutoLabel.id,
            AutoLabel.image_id,
            Image.sha256,
            AutoLabel.class_name,
            AutolabelLook.model,
            AutoLabel.probability,
            AutoLabel.threshold,
            AutolabelLook.number,
            AutoLabel.created_at,
            path,
        )
        .join(Image, Image.id == AutoLabel.image_id)
        .join(AutolabelLook, AutolabelLook.id == AutoLabel.look_id)
        .where(AutoLabel.withdrawn_at.is_(None), Image.split != Split.JUNK.value)
        .order_by(Image.sha256)
    )
    return [AutoLabelRecord(*row) for row in session.execute(query)]


def find_auto_label(session: Session, image_id: int) -> AutoLabelRecord | None:
    """Find the active automatic label of an image."""
    return next((label for label in list_auto_labels(session) if label.image_id == image_id), None)


def count_auto_labels(session: Session) -> int:
    """Count the active automatic labels."""
    return sum(count_auto_classes(session).values())


def count_auto_classes(session: Session) -> dict[str, int]:
    """Count the active automatic labels of each class."""
    query = select(AutoLabel.class_name, func.count()).join(Image, Image.id == AutoLabel.image_id)
    query = query.where(AutoLabel.withdrawn_at.is_(None), Image.split != Split.JUNK.value)
    return {name: n for name, n in session.execute(query.group_by(AutoLabel.class_name).order_by(AutoLabel.class_name))}


def find_look_in_use(session: Session) -> LookRecord | None:
    """Find the look that the active automatic labels come from; None without such labels."""
    numbers = select(func.max(AutolabelLook.number)).join(AutoLabel, AutoLabel.look_id == AutolabelLook.id)
    number = session.scalar(numbers.where(AutoLabel.withdrawn_at.is_(None)))
    if number is None:
        return None
    return next(look for look in list_looks(session) if look.number == number)


def list_audited(session: Session, look_id: int) -> list[Audited]:
    """List the labels of a look that people were asked about in an audit. Withdrawn queries are left out."""
    query = (
        select(AutoLabel.class_name, Label.class_name, QueryRow.status)
        .join(QueryRow, QueryRow.image_id == AutoLabel.image_id)
        .outerjoin(Label, Label.image_id == AutoLabel.image_id)
        .where(
            AutoLabel.look_id == look_id,
            QueryRow.reason == Reason.AUDIT.value,
            QueryRow.status != QueryStatus.WITHDRAWN.value,
            # The label was active when the image was drawn.
            AutoLabel.created_at <= QueryRow.created_at,
            or_(AutoLabel.withdrawn_at.is_(None), AutoLabel.withdrawn_at >= QueryRow.created_at),
        )
        .order_by(QueryRow.id)
    )
    return [Audited(name, truth, QueryStatus(status)) for name, truth, status in session.execute(query)]
