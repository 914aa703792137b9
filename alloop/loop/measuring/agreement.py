"""Share of unlabeled images whose predicted class stayed the same from one round to the next."""

import dataclasses
from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from alloop.engine.score_file import read_predicted
from alloop.errors import ModelError
from alloop.records import Agreement
from alloop.store.rounds import list_rounds


@dataclasses.dataclass(frozen=True, slots=True)
class Before:
    """Newest earlier round with scores."""

    number: int
    path: str


def find_before(session: Session, number: int) -> Before | None:
    """Find the earlier scores to compare a round's scores with."""
    earlier = [row for row in list_rounds(session) if row.number < number and row.scores_path is not None]
    return Before(earlier[-1].number, str(earlier[-1].scores_path)) if earlier else None


def agreement(folder: Path, before: Before, number: int, path: Path) -> Agreement | None:
    """Return the share of images in both score files with the same class; None without such images or files."""
    if not (folder / before.path).exists():
        return None
    try:
        (old_ids, old), (new_ids, new) = read_predicted(folder / before.path), read_predicted(path)
    except ModelError:  # a damaged old file is ignored
        return None
    _, at_old, at_new = np.intersect1d(old_ids, new_ids, assume_unique=True, return_indices=True)
    if not len(at_old):
        return None
    return Agreement(number, before.number, float((old[at_old] == new[at_new]).mean()), len(at_old))
