"""Draw of the holdout: a uniform sample of the pool before the first model, and of the rest in later rounds."""

from collections.abc import Mapping, Sequence

import numpy as np
from sqlalchemy.orm import Session

from alloop.config.schema import Config, EvaluationConfig
from alloop.errors import ConfigError, PoolError
from alloop.loop.intake.near_copies import keep_largest, list_groups, read_sizes
from alloop.loop.workbench import Workbench
from alloop.records import ImageRef, Split
from alloop.seeds import derive_seed, tie_keys
from alloop.store.annotations import list_labels
from alloop.store.holdout import add_draw, drop_draws
from alloop.store.images import count_pool, list_refs, list_split, set_split
from alloop.store.queries import list_ever_asked
from alloop.store.rounds import RoundRecord
from alloop.store.workspace import add_event


def begin_holdout(session: Session, bench: Workbench, current: RoundRecord, seed: int) -> None:
    """Draw the holdout in a round, and record the draw.

    Raises:
        ConfigError: The label budget leaves no label to train on.
    """
    config = bench.project.config
    drawn, of = draw_holdout(session, config.evaluation, seed)
    budget = config.loop.label_budget
    if budget is not None and budget <= len(drawn):
        raise ConfigError(
            f"alloop.toml: [loop] label_budget = {budget} leaves no label to train on: the holdout alone takes "
            f"{len(drawn)}.",
            "Raise [loop] label_budget, or lower [evaluation] holdout_size.",
        )
    drop_draws(session)  # without a holdout, no earlier draw counts
    add_draw(session, current.id, drawn, of, is_growth=False)
    add_event(session, bench.user, "holdout drawn", bench.now(), current.number, images=len(drawn), groups=of)


def extend_holdout(session: Session, bench: Workbench, current: RoundRecord, seed: int) -> None:
    """Draw the images that `[evaluation] holdout_growth` adds, within the label budget, and record the draw."""
    config = bench.project.config
    counts, budget = count_pool(session), config.loop.label_budget
    n = growth_size(config, None if budget is None else budget - counts.labeled - counts.open)
    drawn, of = grow_holdout(session, n, seed) if n else ([], 0)
    if drawn:
        add_draw(session, current.id, drawn, of, is_growth=True)
        add_event(session, bench.user, "holdout grown", bench.now(), current.number, images=drawn, groups=of)


def holdout_size(settings: EvaluationConfig, n_groups: int) -> int:
    """Return the configured number of holdout images, or the configured share of a small pool; at least one."""
    return min(settings.holdout_size, max(1, round(settings.holdout_share * n_groups)))


def draw_holdout(session: Session, settings: EvaluationConfig, seed: int) -> tuple[list[int], int]:
    """Draw a uniform sample of near-duplicate groups, the largest image of each.

    The largest images are sorted by a seeded hash of their contents, and the first ones are taken. Over seeds, every
    subset of groups is equally likely. Sizes of groups, file names and the order of adding do not matter. The other
    members of a chosen group are excluded: they are neither trained on nor measured. Images that were marked as junk
    before the draw belong to no population, so they are not drawn.

    Returns:
        (images drawn, groups they were drawn from); each was drawn with probability drawn / groups.

    Raises:
        PoolError: The pool is too small for a holdout.
    """
    junk = set(list_split(session, Split.JUNK))
    refs = [ref for ref in list_refs(session) if ref.image_id not in junk]
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
    drawn = _draw(session, refs, groups, holdout_size(settings, n_groups), derive_seed(seed, "holdout"))
    return sorted(drawn), n_groups


def growth_size(settings: Config, room: int | None = None) -> int:
    """Return the number of images that a later round adds: its share of the batch, at least one, within the budget.

    Args:
        settings: Settings of the round.
        room: Number of labels that the budget leaves; None without a budget.
    """
    share = settings.evaluation.holdout_growth
    if share == 0 or settings.evaluation.test is not None:
        return 0
    wanted = max(1, round(share * settings.loop.batch_size))
    return wanted if room is None else max(0, min(wanted, room))


def grow_holdout(session: Session, n: int, seed: int) -> tuple[list[int], int]:
    """Add a uniform sample of unlabeled images to the holdout.

    An image can be drawn if it was never asked about and if neither the image nor a near copy of it has a label.

    The sample represents the rest of the pool at this moment, not the pool, because images that the strategy took are
    missing. Therefore it is measured separately (docs/evaluation.md).

    Returns:
        (images drawn, groups they were drawn from); each was drawn with probability drawn / groups.
    """
    groups = list_groups(session)
    labeled = {label.image_id for label in list_labels(session)}
    taken = {groups[image_id] for image_id in labeled | list_ever_asked(session) if image_id in groups}
    refs = [ref for ref in list_refs(session, Split.TRAIN, labeled=False) if groups[ref.image_id] not in taken]
    drawn = _draw(session, refs, groups, n, derive_seed(seed, "holdout growth"))
    return sorted(drawn), len({groups[ref.image_id] for ref in refs})


def _draw(session: Session, refs: Sequence[ImageRef], groups: Mapping[int, int], n: int, seed: int) -> list[int]:
    """Put the largest image of each of n groups into the holdout and exclude the other members of these groups."""
    one_each = keep_largest(refs, groups, read_sizes(session, refs, groups))
    order = np.argsort(tie_keys([ref.sha256 for ref in one_each], seed), kind="stable")
    drawn = [one_each[int(position)].image_id for position in order[:n]]
    chosen, junk = {groups[image_id] for image_id in drawn}, set(list_split(session, Split.JUNK))
    copies = [image_id for image_id, group in groups.items() if group in chosen and image_id not in junk]
    set_split(session, copies, Split.EXCLUDED)
    set_split(session, drawn, Split.HOLDOUT)
    return drawn
