"""Images that may be asked about now."""

from sqlalchemy.orm import Session

from alloop.config.schema import AcquisitionConfig
from alloop.loop.intake.near_copies import list_groups
from alloop.records import ImageRef, QueryStatus, Reason, Split
from alloop.store.images import list_refs
from alloop.store.queries import list_asked_images, list_open_images, list_queries, list_skipped_images


def list_askable(session: Session, settings: AcquisitionConfig, round_number: int) -> list[ImageRef]:
    """List train images with a file that are unlabeled, not asked or declined, and not near copies of known ones.

    A skipped image is asked about again after `ask_skipped_after` rounds, or never. An image with an unknown class
    waits until somebody adds the class or corrects the answer. An image submitted without a class may be asked about
    again.
    """
    labeled = [ref.image_id for ref in list_refs(session, Split.TRAIN, labeled=True)]
    groups = list_groups(session)
    known = {groups[image_id] for image_id in (*labeled, *list_open_images(session))}
    declined = _declined(session, settings.ask_skipped_after, round_number)
    unlabeled = list_refs(session, Split.TRAIN, labeled=False)
    return [ref for ref in unlabeled if groups[ref.image_id] not in known and ref.image_id not in declined]


def list_holdout_to_ask(session: Session) -> list[ImageRef]:
    """List holdout images without a label that were never asked about, or whose task was lost."""
    asked = list_asked_images(session, Reason.HOLDOUT) | list_open_images(session)
    return [ref for ref in list_refs(session, Split.HOLDOUT, labeled=False) if ref.image_id not in asked]


def _declined(session: Session, ask_again_after: int | None, round_number: int) -> set[int]:
    skipped = {
        image_id
        for image_id, number in list_skipped_images(session).items()
        if ask_again_after is None or round_number - number < ask_again_after
    }
    return skipped | {query.image_id for query in list_queries(session, status=QueryStatus.UNKNOWN)}
