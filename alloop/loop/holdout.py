"""Drawing the holdout: a uniform sample of the pool, before any model has seen it."""

import numpy as np
from sqlalchemy.orm import Session

from alloop.config.schema import EvaluationConfig
from alloop.errors import PoolError
from alloop.records import Split
from alloop.seeds import derive_seed, tie_keys
from alloop.store.images import list_groups, list_refs, set_split


def holdout_size(settings: EvaluationConfig, n_groups: int) -> int:
    """The configured number, or the configured share of a small pool; at least one."""
    return min(settings.holdout_size, max(1, round(settings.holdout_share * n_groups)))


def draw_holdout(session: Session, settings: EvaluationConfig, seed: int) -> tuple[int, int]:
    """Set aside a uniform sample of near-duplicate groups, one image of each.

    The sample is the start of the pool in the order of a seeded hash of the images' contents: every subset is equally
    likely over seeds, and neither file names nor the order of adding matter. The other members of a chosen group are
    excluded: they may be neither trained on nor measured.

    Returns:
        (images drawn, groups they were drawn from); each was drawn with probability drawn / groups.

    Raises:
        PoolError: The pool is too small to spare any.
    """
    refs = list_refs(session)
    groups = list_groups(session)
    n_groups = len({groups[ref.image_id] for ref in refs})
    if n_groups < 2:
        how_many = (
            f"{len(refs)} usable image{'s' * (len(refs) > 1)} ({n_groups} different)" if refs else "no usable images"
        )
        raise PoolError(
            f"The pool has {how_many}.",
            "Add images with `alloop pool add PATH`; `alloop pool check` lists those that could not be read.",
        )
    order = np.argsort(tie_keys([ref.sha256 for ref in refs], derive_seed(seed, "holdout")), kind="stable")
    chosen: dict[int, int] = {}
    for position in order:
        ref = refs[int(position)]
        chosen.setdefault(groups[ref.image_id], ref.image_id)
        if len(chosen) == holdout_size(settings, n_groups):
            break
    members = [image_id for image_id, group in groups.items() if group in chosen]
    set_split(session, members, Split.EXCLUDED)
    set_split(session, chosen.values(), Split.HOLDOUT)
    return len(chosen), n_groups
