"""Images of the pool: their files, near-duplicate groups and splits."""

import dataclasses
import datetime as dt
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from alloop.records import ImageFile, ImageRef, LocationStatus, QueryStatus, Split, UnreadableFile
from alloop.store.session import in_chunks
from alloop.store.tables import Image, ImageAttribute, ImageLocation, Label, NearDuplicate, QueryRow, TableBase

# Many rows go into the tables themselves: a mapped class prepares each row, which costs a third of the time.
_TABLES = TableBase.metadata.tables
_IMAGES, _LOCATIONS = _TABLES[Image.__tablename__], _TABLES[ImageLocation.__tablename__]
_NEAR_DUPLICATES = _TABLES[NearDuplicate.__tablename__]


@dataclasses.dataclass(frozen=True, slots=True)
class PoolCounts:
    """Numbers of images by their use. `labeled` counts train and holdout together."""

    images: int
    train: int
    holdout: int
    excluded: int
    junk: int
    labeled: int
    holdout_labeled: int
    open: int
    missing: int
    unreadable: int
    groups: int


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """State of a path when it was last read."""

    path: str
    status: LocationStatus
    image_id: int | None
    sha256: str | None
    reason: str | None
    size: int
    mtime_ns: int
    seen_at: dt.datetime


def find_locations(session: Session, paths: Sequence[str]) -> dict[str, Location]:
    """Find the stored state of these paths."""
    found: dict[str, Location] = {}
    for chunk in in_chunks(paths):
        where = ImageLocation.path.in_(chunk)
        found.update({location.path: location for location in _locations(session, _location_query().where(where))})
    return found


def find_places(session: Session, image_ids: Iterable[int]) -> dict[int, list[Location]]:
    """Find the places of images: image id → every path where its bytes are, or were last seen, in order of path."""
    found: dict[int, list[Location]] = {}
    for chunk in in_chunks(image_ids):
        query = _location_query().where(ImageLocation.image_id.in_(chunk)).order_by(ImageLocation.path)
        for place in _locations(session, query):
            if place.image_id is not None and place.status is not LocationStatus.UNREADABLE:
                found.setdefault(place.image_id, []).append(place)
    return found


def list_image_paths(
    session: Session, status: LocationStatus, beginnings: Sequence[str] = ("",)
) -> list[tuple[int, str]]:
    """List (image id, path) of all paths that hold or held an image and begin with one of these texts, by path."""
    query = select(ImageLocation.image_id, ImageLocation.path).where(
        ImageLocation.image_id.is_not(None), ImageLocation.status == status.value
    )
    if all(beginnings):
        query = query.where(or_(*(ImageLocation.path.startswith(text, autoescape=True) for text in beginnings)))
    return [(image_id, path) for image_id, path in session.execute(query.order_by(ImageLocation.path)) if image_id]


def list_locations(session: Session, status: LocationStatus | None = None) -> list[Location]:
    """List all paths, or those with a status, by path."""
    query = _location_query().order_by(ImageLocation.path)
    return _locations(session, query if status is None else query.where(ImageLocation.status == status.value))


def list_missing(session: Session) -> list[Location]:
    """List the missing paths of images that have no other path, by path."""
    elsewhere = aliased(ImageLocation)
    is_elsewhere = exists().where(
        elsewhere.image_id == ImageLocation.image_id, elsewhere.status == LocationStatus.OK.value
    )
    query = _location_query().where(ImageLocation.status == LocationStatus.MISSING.value, ~is_elsewhere)
    return _locations(session, query.order_by(ImageLocation.path))


def _location_query() -> "Select[str, str, int | None, str | None, str | None, int, int, dt.datetime]":
    return select(
        ImageLocation.path,
        ImageLocation.status,
        ImageLocation.image_id,
        Image.sha256,
        ImageLocation.reason,
        ImageLocation.size,
        ImageLocation.mtime_ns,
        ImageLocation.seen_at,
    ).outerjoin(Image, Image.id == ImageLocation.image_id)


def _locations(
    session: Session, query: "Select[str, str, int | None, str | None, str | None, int, int, dt.datetime]"
) -> list[Location]:
    statuses = {status.value: status for status in LocationStatus}
    return [
        Location(path, statuses[status], image_id, sha256, reason, size, mtime_ns, seen_at)
        for path, status, image_id, sha256, reason, size, mtime_ns, seen_at in session.execute(query)
    ]


def find_image_ids(session: Session, sha256s: Iterable[str]) -> dict[str, int]:
    """Find hash → id for images of the pool."""
    found: dict[str, int] = {}
    for chunk in in_chunks(sha256s):
        rows = session.execute(select(Image.sha256, Image.id).where(Image.sha256.in_(chunk)))
        found.update({sha256: image_id for sha256, image_id in rows})
    return found


def add_images(session: Session, files: Sequence[ImageFile], now: dt.datetime) -> dict[str, int]:
    """Add new images, all with different bytes, to the train split. Their ids increase in the order given.

    Their locations and near-duplicate groups are added separately.

    Returns:
        Content hash → id.
    """
    rows = [
        {
            "sha256": file.sha256,
            "split": Split.TRAIN.value,
            "width": file.width,
            "height": file.height,
            "format": file.format,
            "mode": file.mode,
            "phash": file.phash,
            "depth": file.depth,
            "added_at": now,
        }
        for file in files
    ]
    if not rows:
        return {}
    # A few statements for all rows. The order of the rows that come back is not relied on; asking for it
    # (sort_by_parameter_order) makes a statement for each row on SQLite.
    inserted = insert(_IMAGES).returning(_IMAGES.c.sha256, _IMAGES.c.id)
    return {sha256: image_id for sha256, image_id in session.connection().execute(inserted, rows)}


def set_depths(session: Session, files: Mapping[int, ImageFile]) -> None:
    """Record the depths of known images, and their fingerprints at these depths: image id → file."""
    rows = [{"id": image_id, "depth": file.depth, "phash": file.phash} for image_id, file in files.items()]
    if rows:
        session.execute(update(Image), rows)


def find_depth(session: Session) -> int | None:
    """Return the largest depth of the pool's images, in bits; None if all have 8 bits a channel."""
    return session.scalar(select(func.max(Image.depth)))


def raise_depth(session: Session, depth: int) -> None:
    """Raise the depth of images with more than 8 bits a channel to a depth that an image outside the pool needs."""
    session.execute(update(Image).where(Image.depth < depth).values(depth=depth))


def count_deep(session: Session) -> int:
    """Count the images with more than 8 bits a channel."""
    return session.scalar(select(func.count()).where(Image.depth.is_not(None))) or 0


def add_apart(session: Session, files: Sequence[ImageFile], now: dt.datetime) -> list[int]:
    """Add many new images, each with its location and in a near-duplicate group of its own. Returns their ids."""
    by_hash = add_images(session, files, now)
    set_locations(session, files, by_hash, now)
    ids = [by_hash[file.sha256] for file in files]
    add_groups(session, [(image_id, image_id, 0) for image_id in ids])
    return ids


def set_locations(
    session: Session, files: Iterable[ImageFile | UnreadableFile], image_ids: Mapping[str, int], now: dt.datetime
) -> None:
    """Record the current content of paths, which may have held something else before.

    Args:
        session: Database session to write to.
        files: What was found at the paths. Of two at one path, the last counts.
        image_ids: Content hash → id of every image among the files.
        now: Time at which they were seen.
    """
    by_path = {file.path: _location_values(file, image_ids, now) for file in files}
    known: dict[str, int] = {}
    for chunk in in_chunks(by_path):
        rows = session.execute(select(ImageLocation.path, ImageLocation.id).where(ImageLocation.path.in_(chunk)))
        known.update({path: location_id for path, location_id in rows})
    fresh = [{"path": path, **values} for path, values in by_path.items() if path not in known]
    changed = [{"id": location_id, **by_path[path]} for path, location_id in known.items()]
    if fresh:
        session.connection().execute(insert(_LOCATIONS), fresh)
    if changed:
        session.execute(update(ImageLocation), changed)


def _location_values(
    file: ImageFile | UnreadableFile, image_ids: Mapping[str, int], now: dt.datetime
) -> dict[str, object]:
    status = LocationStatus.UNREADABLE if isinstance(file, UnreadableFile) else LocationStatus.OK
    return {
        "image_id": image_ids[file.sha256] if isinstance(file, ImageFile) else None,
        "status": status.value,
        "reason": file.reason if isinstance(file, UnreadableFile) else None,
        "size": file.size,
        "mtime_ns": file.mtime_ns,
        "seen_at": now,
    }


def set_location_status(session: Session, paths: Sequence[str], status: LocationStatus, now: dt.datetime) -> None:
    """Mark known image paths as present or missing. Paths with a reason for missing (`set_missing`) stay missing."""
    has_reason = and_(ImageLocation.status == LocationStatus.MISSING.value, ImageLocation.reason.is_not(None))
    for chunk in in_chunks(paths):
        session.execute(
            update(ImageLocation)
            .where(ImageLocation.path.in_(chunk), ImageLocation.image_id.is_not(None), ~has_reason)
            .values(status=status.value, reason=None, seen_at=now)
        )


def set_replaced(session: Session, paths: Sequence[str], now: dt.datetime) -> None:
    """Record that the files at these paths have other bytes than their images, so that they are read again."""
    for chunk in in_chunks(paths):
        values = {"status": LocationStatus.MISSING.value, "reason": None, "mtime_ns": -1, "seen_at": now}
        session.execute(update(ImageLocation).where(ImageLocation.path.in_(chunk)).values(**values))


def set_unreadable(session: Session, reasons: Mapping[str, str], now: dt.datetime) -> None:
    """Record that the images at these paths can no longer be read: path → reason."""
    _set_reasons(session, LocationStatus.UNREADABLE, reasons, now)


def set_missing(session: Session, reasons: Mapping[str, str], now: dt.datetime) -> None:
    """Record a reason why images at these paths count as missing although the files exist: path → reason."""
    _set_reasons(session, LocationStatus.MISSING, reasons, now)


def _set_reasons(session: Session, status: LocationStatus, reasons: Mapping[str, str], now: dt.datetime) -> None:
    for path, reason in reasons.items():
        values = {"status": status.value, "reason": reason, "seen_at": now}
        session.execute(update(ImageLocation).where(ImageLocation.path == path).values(**values))


def drop_unreadable(session: Session, paths: Sequence[str]) -> None:
    """Delete those of the paths that never held an image."""
    for chunk in in_chunks(paths):
        session.execute(delete(ImageLocation).where(ImageLocation.path.in_(chunk), ImageLocation.image_id.is_(None)))


def list_leaders(session: Session) -> list[tuple[int, str, int | None]]:
    """List (image id, perceptual hash, depth) of the first member of every near-duplicate group, oldest first."""
    query = (
        select(Image.id, Image.phash, Image.depth)
        .join(NearDuplicate, NearDuplicate.image_id == Image.id)
        .where(NearDuplicate.group_id == NearDuplicate.image_id)
        .order_by(Image.id)
    )
    return [(image_id, phash, depth) for image_id, phash, depth in session.execute(query)]


def add_groups(session: Session, groups: Iterable[tuple[int, int, int]]) -> None:
    """Put new images in near-duplicate groups: (image id, group id, distance to the group's first member)."""
    rows = [{"image_id": image_id, "group_id": group, "distance": distance} for image_id, group, distance in groups]
    if rows:
        session.connection().execute(insert(_NEAR_DUPLICATES), rows)


def list_groups(session: Session) -> dict[int, int]:
    """Return image id → near-duplicate group id for the whole pool, by fingerprints only. Labels may split a group."""
    return {
        image_id: group for image_id, group in session.execute(select(NearDuplicate.image_id, NearDuplicate.group_id))
    }


def count_groups(session: Session) -> tuple[int, int]:
    """Count the images of the pool and their near-duplicate groups, by fingerprints only."""
    n_images = session.scalar(select(func.count()).select_from(NearDuplicate)) or 0
    return n_images, session.scalar(select(func.count(NearDuplicate.group_id.distinct()))) or 0


def find_disputed_groups(session: Session) -> dict[int, int]:
    """Return image id → near-duplicate group id for all members of groups whose labels differ."""
    groups = (
        select(NearDuplicate.group_id)
        .join(Label, Label.image_id == NearDuplicate.image_id)
        .group_by(NearDuplicate.group_id)
        .having(func.count(Label.class_name.distinct()) > 1)
    )
    query = select(NearDuplicate.image_id, NearDuplicate.group_id).where(NearDuplicate.group_id.in_(groups))
    return {image_id: group for image_id, group in session.execute(query)}


def find_shared_groups(session: Session, image_ids: Iterable[int] | None = None) -> dict[int, int]:
    """Return image id → near-duplicate group id for all members of groups with several members.

    Args:
        session: Database session to read from.
        image_ids: Only groups with one of these images; None: all groups.
    """
    member, other = NearDuplicate, aliased(NearDuplicate)
    query = select(member.image_id, member.group_id)
    shared = exists().where(other.group_id == member.group_id, other.image_id != member.image_id)
    if image_ids is None:
        return {image_id: group for image_id, group in session.execute(query.where(shared))}
    found: dict[int, int] = {}
    for chunk in in_chunks(image_ids):
        mine = select(other.group_id).where(other.image_id.in_(chunk))
        found.update({image_id: group for image_id, group in session.execute(query.where(member.group_id.in_(mine)))})
    n_members = Counter(found.values())
    return {image_id: group for image_id, group in found.items() if n_members[group] > 1}


def list_fingerprints(session: Session) -> list[tuple[int, str, int | None]]:
    """List (image id, fingerprint, depth) of every image, oldest first."""
    query = select(Image.id, Image.phash, Image.depth).order_by(Image.id)
    return [(image_id, phash, depth) for image_id, phash, depth in session.execute(query)]


def find_fingerprints(session: Session, image_ids: Iterable[int]) -> dict[int, str]:
    """Find the fingerprints of images: image id → fingerprint."""
    found: dict[int, str] = {}
    for chunk in in_chunks(image_ids):
        rows = session.execute(select(Image.id, Image.phash).where(Image.id.in_(chunk)))
        found.update({image_id: phash for image_id, phash in rows})
    return found


def replace_groups(session: Session, groups: Sequence[tuple[int, int, int]]) -> None:
    """Replace all near-duplicate groups by new ones: (image id, group id, distance to the group's first member)."""
    session.execute(delete(NearDuplicate))
    add_groups(session, groups)


def find_splits(session: Session, image_ids: Iterable[int] | None = None) -> dict[int, Split]:
    """Find the splits of these images (None: of all): image id → split."""
    splits = {split.value: split for split in Split}
    query = select(Image.id, Image.split)
    if image_ids is None:
        return {image_id: splits[split] for image_id, split in session.execute(query)}
    found: dict[int, Split] = {}
    for chunk in in_chunks(image_ids):
        found.update({image_id: splits[split] for image_id, split in session.execute(query.where(Image.id.in_(chunk)))})
    return found


def list_refs(session: Session, split: Split | None = None, labeled: bool | None = None) -> list[ImageRef]:
    """List the images with a file, by id, with one path each (the first in order of path).

    Args:
        session: Database session to read from.
        split: Only this split.
        labeled: Only images with (True) or without (False) a label.
    """
    query = _refs_query()
    if split is not None:
        query = query.where(Image.split == split.value)
    if labeled is not None:
        has_label = select(Label.image_id).where(Label.image_id == Image.id).exists()
        query = query.where(has_label if labeled else ~has_label)
    return _refs(session, query)


def list_added_after(session: Session, time: dt.datetime) -> set[int]:
    """List the images that were added to the pool after a time."""
    return set(session.scalars(select(Image.id).where(Image.added_at > time)))


def find_refs(session: Session, image_ids: Iterable[int]) -> dict[int, ImageRef]:
    """Find those of the images that have a file."""
    found: dict[int, ImageRef] = {}
    for chunk in in_chunks(image_ids):
        for ref in _refs(session, _refs_by_id(), {"ids": chunk}):
            found[ref.image_id] = ref
    return found


def find_sizes(session: Session, image_ids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Find the sizes of images: image id → (number of pixels, bytes of its file)."""
    found: dict[int, tuple[int, int]] = {}
    for chunk in in_chunks(image_ids):
        query = (
            select(Image.id, Image.width * Image.height, func.max(ImageLocation.size))
            .join(ImageLocation, ImageLocation.image_id == Image.id)
            .where(Image.id.in_(chunk))
            .group_by(Image.id, Image.width, Image.height)
        )
        found.update({image_id: (pixels, size) for image_id, pixels, size in session.execute(query)})
    return found


def find_shapes(session: Session, image_ids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Find the shapes of images as people see them: image id → (width, height) in pixels."""
    found: dict[int, tuple[int, int]] = {}
    for chunk in in_chunks(image_ids):
        rows = session.execute(select(Image.id, Image.width, Image.height).where(Image.id.in_(chunk)))
        found.update({image_id: (width, height) for image_id, width, height in rows})
    return found


def find_all_refs(session: Session, image_ids: Iterable[int]) -> dict[int, ImageRef]:
    """Find images, also those without a file: their path is that of a missing file, or empty."""
    path = func.coalesce(_first_present(), func.min(ImageLocation.path), "")
    query = (
        select(Image.id, Image.sha256, path, Image.depth)
        .join(ImageLocation, ImageLocation.image_id == Image.id, isouter=True)
        .group_by(Image.id, Image.sha256, Image.depth)
    )
    found: dict[int, ImageRef] = {}
    for chunk in in_chunks(image_ids):
        found.update({ref.image_id: ref for ref in _refs(session, query.where(Image.id.in_(chunk)))})
    return found


def _first_present() -> "ColumnElement[str]":
    """Return the first path of an image at which it is present, in a query that is grouped by image."""
    return func.min(case((ImageLocation.status == LocationStatus.OK.value, ImageLocation.path)))


def _refs_query() -> "Select[int, str, str, int | None]":
    return (
        select(Image.id, Image.sha256, func.min(ImageLocation.path), Image.depth)
        .join(ImageLocation, ImageLocation.image_id == Image.id)
        .where(ImageLocation.status == LocationStatus.OK.value)
        .group_by(Image.id, Image.sha256, Image.depth)
        .order_by(Image.id)
    )


@functools.cache
def _refs_by_id() -> "Select[int, str, str, int | None]":
    """Return the query for the images `ids`. Making it takes as long as running it, and pages ask for single images."""
    # With a condition on the status, SQLite would look at every path of the pool for each chunk.
    path = _first_present()
    return (
        select(Image.id, Image.sha256, path, Image.depth)
        .join(ImageLocation, ImageLocation.image_id == Image.id)
        .where(Image.id.in_(bindparam("ids", expanding=True)))
        .group_by(Image.id, Image.sha256, Image.depth)
        .having(path.is_not(None))
        .order_by(Image.id)
    )


def _refs(
    session: Session, query: "Select[int, str, str, int | None]", values: Mapping[str, Any] | None = None
) -> list[ImageRef]:
    rows = session.execute(query, values).all()
    depth = find_depth(session) if any(own for _, _, _, own in rows) else None  # this looks at every image
    return [ImageRef(image_id, sha256, path, own and depth, is_admitted=True) for image_id, sha256, path, own in rows]


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about an image that need no reading of its file; `paths` are its present paths, in order."""

    image_id: int
    paths: tuple[str, ...]
    width: int
    height: int
    format: str
    attributes: Mapping[str, str]


def list_facts(session: Session) -> list[ImageFacts]:
    """List the facts of every image, by id."""
    attributes: dict[int, dict[str, str]] = {}
    columns = select(ImageAttribute.image_id, ImageAttribute.name, ImageAttribute.value)
    for image_id, name, value in session.execute(columns):
        attributes.setdefault(image_id, {})[name] = value
    paths: dict[int, list[str]] = {}
    here = select(ImageLocation.image_id, ImageLocation.path).where(
        ImageLocation.image_id.is_not(None), ImageLocation.status == LocationStatus.OK.value
    )
    for here_id, path in session.execute(here.order_by(ImageLocation.path)):
        if here_id is not None:
            paths.setdefault(here_id, []).append(path)
    query = select(Image.id, Image.width, Image.height, Image.format).order_by(Image.id)
    return [
        ImageFacts(image_id, tuple(paths.get(image_id, ())), width, height, form, attributes.get(image_id, {}))
        for image_id, width, height, form in session.execute(query)
    ]


def list_attribute_names(session: Session) -> list[str]:
    """List the names of all attributes of images."""
    return list(session.scalars(select(ImageAttribute.name).distinct().order_by(ImageAttribute.name)))


def set_attributes(session: Session, values: Mapping[int, Mapping[str, str]]) -> None:
    """Replace the values of these attributes of these images; an empty text removes the attribute."""
    names = {name for given in values.values() for name in given}
    for name in names:
        for chunk in in_chunks([image_id for image_id, given in values.items() if name in given]):
            session.execute(
                delete(ImageAttribute).where(ImageAttribute.name == name, ImageAttribute.image_id.in_(chunk))
            )
    rows = [
        {"image_id": image_id, "name": name, "value": value}
        for image_id, given in values.items()
        for name, value in given.items()
        if value
    ]
    if rows:
        session.execute(insert(ImageAttribute), rows)


def set_split(session: Session, image_ids: Iterable[int], split: Split) -> None:
    """Change the split of images."""
    for chunk in in_chunks(image_ids):
        session.execute(update(Image).where(Image.id.in_(chunk)).values(split=split.value))


def find_split(session: Session, image_id: int) -> Split:
    """Find the split of an image."""
    return Split(session.scalars(select(Image.split).where(Image.id == image_id)).one())


def list_split(session: Session, split: Split) -> list[int]:
    """List the ids of all images of a split, with or without a file."""
    return list(session.scalars(select(Image.id).where(Image.split == split.value)))


def has_holdout(session: Session) -> bool:
    """Return whether the holdout has been drawn."""
    return session.scalar(select(Image.id).where(Image.split == Split.HOLDOUT.value).limit(1)) is not None


def _count_present(session: Session) -> int:
    """Count the images with a file: those with a path, less those with only missing or unreadable paths."""
    elsewhere = aliased(ImageLocation)
    is_elsewhere = exists().where(
        elsewhere.image_id == ImageLocation.image_id, elsewhere.status == LocationStatus.OK.value
    )
    is_lost = ImageLocation.status.in_([status.value for status in LocationStatus if status is not LocationStatus.OK])
    n_images = select(func.count(ImageLocation.image_id.distinct()))  # by its index alone
    return (session.scalar(n_images) or 0) - (session.scalar(n_images.where(is_lost, ~is_elsewhere)) or 0)


def count_unreadable(session: Session) -> int:
    """Count the files that could not be read."""
    is_unreadable = ImageLocation.status == LocationStatus.UNREADABLE.value
    return session.scalar(select(func.count()).select_from(ImageLocation).where(is_unreadable)) or 0


def split_of_label() -> "ScalarSelect[str]":
    """Return the split of a label's image as an expression.

    Joined with the images, SQLite would look for a label of each image of the pool.
    """
    return select(Image.split).where(Image.id == Label.image_id).correlate(Label).scalar_subquery()


def count_labeled(session: Session) -> Counter[Split]:
    """Count the images with a label, by split."""
    of_label = select(split_of_label().label("split")).select_from(Label).subquery()
    query = select(of_label.c.split, func.count()).group_by(of_label.c.split)
    return Counter({Split(split): n for split, n in session.execute(query)})


def count_pool(session: Session) -> PoolCounts:
    """Count the images of the pool for `status`, in the database."""
    by_split = {split: n for split, n in session.execute(select(Image.split, func.count()).group_by(Image.split))}
    n_labeled = count_labeled(session)
    is_open = session.scalar(
        select(func.count()).select_from(QueryRow).where(QueryRow.status == QueryStatus.OPEN.value)
    )
    images = sum(by_split.values())
    groups = session.scalar(select(func.count(NearDuplicate.group_id.distinct())))
    return PoolCounts(
        images=images,
        train=by_split.get(Split.TRAIN.value, 0),
        holdout=by_split.get(Split.HOLDOUT.value, 0),
        excluded=by_split.get(Split.EXCLUDED.value, 0),
        junk=by_split.get(Split.JUNK.value, 0),
        labeled=n_labeled[Split.TRAIN] + n_labeled[Split.HOLDOUT],
        holdout_labeled=n_labeled[Split.HOLDOUT],
        open=is_open or 0,
        missing=images - _count_present(session),
        unreadable=count_unreadable(session),
        groups=groups or 0,
    )
