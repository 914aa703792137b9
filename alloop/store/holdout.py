"""Draws of the holdout: the images that each one took, and from how many groups of near copies."""

import datetime as dt
from collections.abc import Sequence

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from alloop.store.tables import HoldoutDraw, HoldoutImage, Round


def add_draw(session: Session, round_id: int, image_ids: Sequence[int], n_groups: int, *, is_growth: bool) -> None:
    """Record a draw. Call only with at least one image.

    Args:
        session: Where to write.
        round_id: Round that draws, at most once.
        image_ids: Images that were drawn.
        n_groups: Number of groups of near copies that they were drawn from.
        is_growth: True for a draw from the rest of the pool, after the first one.
    """
    session.execute(
        insert(HoldoutDraw).values(round_id=round_id, is_growth=is_growth, n_images=len(image_ids), n_groups=n_groups)
    )
    session.execute(insert(HoldoutImage), [{"image_id": image_id, "round_id": round_id} for image_id in image_ids])


def drop_draws(session: Session) -> None:
    """Forget all draws, for example before the holdout is drawn again."""
    session.execute(delete(HoldoutImage))
    session.execute(delete(HoldoutDraw))


def list_probabilities(session: Session) -> dict[int, float]:
    """Return the probability with which each image was drawn into the holdout."""
    query = select(HoldoutImage.image_id, HoldoutDraw.n_images, HoldoutDraw.n_groups).join(
        HoldoutDraw, HoldoutDraw.round_id == HoldoutImage.round_id
    )
    return {image_id: n_images / n_groups for image_id, n_images, n_groups in session.execute(query)}


def find_draw_time(session: Session) -> dt.datetime | None:
    """Return the time of the first draw, from the whole pool; None if nothing was drawn."""
    query = select(Round.created_at).join(HoldoutDraw, HoldoutDraw.round_id == Round.id)
    return session.scalar(query.where(HoldoutDraw.is_growth.is_(False)).order_by(Round.number.desc()).limit(1))


def list_grown(session: Session) -> set[int]:
    """Return the images that later rounds drew into the holdout."""
    query = select(HoldoutImage.image_id).join(HoldoutDraw, HoldoutDraw.round_id == HoldoutImage.round_id)
    return set(session.scalars(query.where(HoldoutDraw.is_growth)))
