"""Near copies: images that show the same thing. People are asked about one image of each group.

No group is in both the train split and the holdout.
The database stores groups made from fingerprints. Images with different labels do not show the same thing, so labels
split groups. Other rooms use `list_groups`, which takes the labels into account.
"""

import dataclasses
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy.orm import Session

from alloop.config.schema import PoolConfig
from alloop.loop.workbench import Workbench
from alloop.pool.hashing import LENGTH, at_depth, bits_apart
from alloop.pool.near_duplicates import NearDuplicateIndex
from alloop.progress import Progress
from alloop.records import ImageRef, Split
from alloop.store import images as store
from alloop.store.annotations import find_classes
from alloop.store.queries import list_open_images
from alloop.store.session import reading, transaction
from alloop.store.workspace import add_event, find_near_copies, set_near_copies

logger = logging.getLogger("alloop")
OFF = "off"
_AT_ONCE = 1000  # images between two reports of progress
Sizes = Mapping[int, tuple[int, int]]  # image → (pixels, bytes)


def list_groups(session: Session, labels: Mapping[int, str] | None = None) -> dict[int, int]:
    """Return the group of near copies of every image: image id → group id, which is the id of one of its members.

    Args:
        session: Database session to read from.
        labels: Image id → class, used in place of the current labels.
    """
    groups = store.list_groups(session)
    shared = {image_id: group for image_id, group in groups.items() if group != image_id}
    members = {**shared, **{group: group for group in shared.values()}}
    return {**groups, **_split_by_labels(session, members, labels)}


def count_groups(session: Session) -> tuple[int, int]:
    """Count the images of the pool and their groups of near copies, as `list_groups` lists them."""
    n_images, n_groups = store.count_groups(session)
    members = store.find_disputed_groups(session)
    parts = _split_by_labels(session, members, None)
    return n_images, n_groups - len(set(members.values())) + len(set(parts.values()))


def update_splits(session: Session, image_ids: Collection[int] | None = None) -> Counter[tuple[Split, bool]]:
    """Exclude near copies of holdout images, and return images that are no longer near copies to the train split.

    The holdout keeps its images, and images marked as junk stay junk. For every other image, its group decides.

    Args:
        session: Database session to write to.
        image_ids: Images whose label or group changed; None if any may have changed.

    Returns:
        Number of images that changed, by new split and by whether they have a label.
    """
    members = store.find_shared_groups(session, image_ids)
    groups = {**members, **_split_by_labels(session, members, None)}
    splits = store.find_splits(session, groups if image_ids is not None else None)
    measured = {groups.get(image_id, image_id) for image_id, split in splits.items() if split is Split.HOLDOUT}
    changed: dict[Split, list[int]] = defaultdict(list)
    for image_id, split in splits.items():
        wanted = Split.EXCLUDED if groups.get(image_id, image_id) in measured else Split.TRAIN
        if split not in (Split.HOLDOUT, Split.JUNK, wanted):
            changed[wanted].append(image_id)
    counts: Counter[tuple[Split, bool]] = Counter()
    for split, moved in changed.items():
        store.set_split(session, moved, split)
        labeled = find_classes(session, moved)
        counts.update((split, image_id in labeled) for image_id in moved)
    return counts


@dataclasses.dataclass(frozen=True)
class Regrouped:
    """Result of grouping the pool again: old and new setting, and numbers of images that changed."""

    old: str | None
    new: str
    images: int
    copies_before: int
    copies: int
    set_aside: int
    set_aside_labeled: int
    set_aside_open: int
    given_back: int

    @property
    def is_changed(self) -> bool:
        """True if the user should be told."""
        return self.old is not None or self.copies != self.copies_before or self.set_aside + self.given_back > 0

    def __str__(self) -> str:
        before = f"{self.copies_before} of {self.images} images were near copies of another"
        said = [f"Near copies were grouped again ({_in_words(self.new)}): {before}, now {self.copies} are."]
        if self.set_aside:
            said.append(
                f"{self.set_aside} are excluded as near copies of holdout images ({self.set_aside_labeled} of them "
                f"labeled, {self.set_aside_open} being asked about): no model is trained on them."
            )
        if self.given_back:
            said.append(f"{self.given_back} that were excluded may be asked about and trained on again.")
        return " ".join(said)


def group_anew(bench: Workbench) -> Regrouped | None:
    """Group the pool again if the settings in `[pool]` changed since it was grouped. The holdout keeps its images.

    The groups are made from the fingerprints in the database, as if the images had been added with the new settings.

    Returns:
        The numbers that changed; None if nothing did.
    """
    project = bench.project
    wanted = _setting(project.config.pool)
    with reading(project.database) as session:
        before = find_near_copies(session)
        if before == wanted:
            return None
        depth = store.find_depth(session)
        fingerprints = [
            (image_id, phash if len(phash) != LENGTH else at_depth(phash, own, depth))
            for image_id, phash, own in store.list_fingerprints(session)
        ]
        copies_before = len(fingerprints) - len(set(store.list_groups(session).values()))
    groups = _group(fingerprints, project.config.pool, bench.progress)
    with transaction(project.database) as session:
        store.replace_groups(session, groups)
        set_near_copies(session, wanted)
        open_ = list_open_images(session) & {ref.image_id for ref in store.list_refs(session, Split.TRAIN)}
        moved = update_splits(session)
        found = Regrouped(
            old=before,
            new=wanted,
            images=len(groups),
            copies_before=copies_before,
            copies=len(groups) - len({leader for _, leader, _ in groups}),
            set_aside=moved[Split.EXCLUDED, True] + moved[Split.EXCLUDED, False],
            set_aside_labeled=moved[Split.EXCLUDED, True],
            set_aside_open=len(open_ - {ref.image_id for ref in store.list_refs(session, Split.TRAIN)}),
            given_back=moved[Split.TRAIN, True] + moved[Split.TRAIN, False],
        )
        if not (groups and found.is_changed):
            return None
        add_event(session, bench.user, "near copies grouped", bench.now(), **dataclasses.asdict(found))
    logger.info("%s", found)
    return found


def read_sizes(session: Session, refs: Iterable[ImageRef], groups: Mapping[int, int]) -> Sizes:
    """Return the sizes of those images that share their group with another one of `refs`."""
    image_ids = [ref.image_id for ref in refs]
    counts = Counter(groups[image_id] for image_id in image_ids)
    return store.find_sizes(session, [image_id for image_id in image_ids if counts[groups[image_id]] > 1])


def keep_largest(refs: Sequence[ImageRef], groups: Mapping[int, int], sizes: Sizes) -> list[ImageRef]:
    """Keep one image of each group, in the order given: most pixels, then most bytes, then the smallest hash.

    People see most in the largest image, so a photo is asked about and not its thumbnail. The choice stays the same
    from round to round.
    """
    largest: dict[int, tuple[int, int, str]] = {}
    for ref in refs:
        rank = _rank(ref, sizes)
        group = groups[ref.image_id]
        largest[group] = min(largest.get(group, rank), rank)
    return [ref for ref in refs if largest[groups[ref.image_id]] == _rank(ref, sizes)]


def _rank(ref: ImageRef, sizes: Sizes) -> tuple[int, int, str]:
    pixels, n_bytes = sizes.get(ref.image_id, (0, 0))
    return -pixels, -n_bytes, ref.sha256


def _setting(settings: PoolConfig) -> str:
    return str(settings.near_duplicate_distance) if settings.near_duplicates else OFF


def _in_words(setting: str) -> str:
    return "[pool] near_duplicates = false" if setting == OFF else f"[pool] near_duplicate_distance = {setting}"


def _group(
    fingerprints: Sequence[tuple[int, str]], settings: PoolConfig, progress: Progress
) -> list[tuple[int, int, int]]:
    """Return (image id, group id, distance to the group's first member) for images in the order of adding."""
    index, groups = NearDuplicateIndex(settings.near_duplicate_distance), []
    for start in range(0, len(fingerprints), _AT_ONCE):
        some = dict(fingerprints[start : start + _AT_ONCE])
        # Rows of a features file have no fingerprint.
        compared = {image_id: phash for image_id, phash in some.items() if len(phash) == LENGTH}
        found = index.group(compared) if settings.near_duplicates else {}
        groups += [(image_id, *found.get(image_id, (image_id, 0))) for image_id in some]
        progress("grouping near copies", len(groups), len(fingerprints))
    return groups


def _split_by_labels(session: Session, members: Mapping[int, int], labels: Mapping[int, str] | None) -> dict[int, int]:
    """Return new groups for the members of groups whose labels disagree: image id → group id.

    Members of one class form a group. A member without a label joins the labeled member with the nearest fingerprint;
    of equally near ones, the one that was added first.
    """
    classes = find_classes(session, members) if labels is None else labels
    said: dict[int, set[str]] = defaultdict(set)
    for image_id, group in members.items():
        if image_id in classes:
            said[group].add(classes[image_id])
    mixed = sorted(image_id for image_id, group in members.items() if len(said[group]) > 1)
    fingerprints = store.find_fingerprints(session, mixed)
    groups: dict[int, int] = {}
    by_group = sorted(mixed, key=lambda image_id: (members[image_id], image_id))
    for _, found in itertools.groupby(by_group, key=members.__getitem__):
        together = list(found)
        labeled = [image_id for image_id in together if image_id in classes]
        first: dict[str, int] = {}
        for image_id in together:
            near = image_id
            if image_id not in classes:
                near = min(labeled, key=lambda other: (bits_apart(fingerprints[other], fingerprints[image_id]), other))
            groups[image_id] = first.setdefault(classes[near], image_id)
    return groups
