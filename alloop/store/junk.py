"""Images that people marked as junk: never asked about, never trained on."""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from alloop.records import Split
from alloop.store.images import set_split
from alloop.store.session import in_chunks
from alloop.store.tables import Junk


@dataclasses.dataclass(frozen=True, slots=True)
class JunkMark:
    """Mark of an image: who set it, when, and why in their words; the reason may be empty."""

    image_id: int
    marked_at: dt.datetime
    marked_by: str
    reason: str


def add_junk(session: Session, image_ids: Sequence[int], reason: str, actor: str, now: dt.datetime) -> None:
    """Mark images that are not marked yet, and move them to the split `junk`."""
    rows = [
        {"image_id": image_id, "marked_at": now, "marked_by": actor, "reason": reason or None} for image_id in image_ids
    ]
    if rows:
        session.execute(insert(Junk), rows)
        set_split(session, image_ids, Split.JUNK)


def drop_junk(session: Session, image_ids: Sequence[int]) -> None:
    """Remove the marks of these images, and move the images to the train split."""
    for chunk in in_chunks(image_ids):
        session.execute(delete(Junk).where(Junk.image_id.in_(chunk)))
    set_split(session, image_ids, Split.TRAIN)


def find_junk(session: Session, image_ids: Iterable[int]) -> dict[int, JunkMark]:
    """Find the marks of these images: image id → mark."""
    found: dict[int, JunkMark] = {}
    for chunk in in_chunks(image_ids):
        for row in session.scalars(select(Junk).where(Junk.image_id.in_(chunk))):
            found[row.image_id] = JunkMark(row.image_id, row.marked_at, row.marked_by, row.reason or "")
    return found
