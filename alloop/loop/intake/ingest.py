"""Adding of images to the pool, and checks of their files."""

import contextlib
import dataclasses
import datetime as dt
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from alloop.config.schema import ProjectConfig
from alloop.errors import LabelError, PoolError
from alloop.loop.intake.judge import judge_of
from alloop.loop.intake.labels import record_imported
from alloop.loop.intake.near_copies import count_groups, group_anew, update_splits
from alloop.loop.intake.presence import Shown, differs, has_hash, looks_untouched, reads_as
from alloop.loop.intake.reach import check_reachable, configured_images, is_there, require_reachable
from alloop.loop.workbench import Workbench
from alloop.machine import count_workers
from alloop.names import look
from alloop.pool.hashing import at_depth
from alloop.pool.ingest import READING, inspect_files
from alloop.pool.near_duplicates import NearDuplicateIndex
from alloop.pool.sources import Skipped, Stamp, expand, find_source, folder_of, full_name, name_of, scheme_of
from alloop.progress import Progress, silent
from alloop.project import Project
from alloop.records import ImageFile, LocationStatus, RoundState, Split, UnreadableFile
from alloop.store import images as store
from alloop.store.images import (
    Location,
    add_groups,
    count_deep,
    drop_unreadable,
    find_depth,
    find_image_ids,
    find_locations,
    find_places,
    find_refs,
    list_image_paths,
    list_leaders,
    list_locations,
    list_refs,
    list_split,
    set_depths,
    set_location_status,
    set_locations,
    set_missing,
    set_replaced,
    set_unreadable,
)
from alloop.store.rounds import drop_model, find_last_round, set_scores, set_state
from alloop.store.session import reading, transaction
from alloop.store.workspace import add_event

if TYPE_CHECKING:
    from alloop.engine.first_reading import FirstReading  # torch loads for those who ask for features only

logger = logging.getLogger("alloop")
Inspected = ImageFile | UnreadableFile
LEFT_OUT = "left out: "  # beginning of the reason for a file that must not become an image again
BATCH, SECONDS = 1000, 30.0  # most files, and most seconds, per transaction; a killed call reads at most these again
FOLDERS = 20  # named folders up to which the database finds their files: it compares every path with every folder
PARALLEL = 200  # files from which on several processes read them: starting them takes a second


@dataclasses.dataclass
class Added:
    """Result of adding images."""

    new: int = 0
    known: int = 0  # the same bytes were already in the pool, under this or another name
    unchanged: int = 0  # path, size and time as recorded, so not read again
    unreadable: int = 0
    unreadable_one: str = ""  # name of the first of these files, with the reason
    near_duplicates: int = 0  # near copies among the new images
    images: int = 0  # images of the whole pool
    copies: int = 0  # images of the whole pool that are near copies of another one
    labeled: int = 0
    skipped: int = 0  # files in folders that are plainly not images
    deep: int = 0  # images of the whole pool with more than 8 bits a channel
    depth: int | None = None  # bits a channel at which all of these are read
    changed_depth: int = 0  # images that were read at another depth before: their features are computed again
    round_again: int | None = None  # round that is trained again because the depth changed
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)  # hidden and system names → number of entries
    regrouped: str = ""  # sentence about the new groups of near copies, if their settings changed
    dropped: int = 0  # files that were in the pool and are in such folders
    features: int | None = None  # images whose features were computed; None: nobody asked for them

    @property
    def has_many_copies(self) -> bool:
        """True if more than a third are near copies. They may be different objects on the same background."""
        return 3 * self.copies > self.images


def add_images(
    bench: Workbench, paths: Sequence[str], *, labels_from_folders: bool = False, features: "FirstReading | None" = None
) -> Added:
    """Add files, folders and globs to the pool. Adding twice changes nothing; the next call continues a killed one.

    Args:
        bench: Workbench of the workspace.
        paths: Files, folders and globs.
        labels_from_folders: True to label each image by the name of its folder.
        features: Computes features of new images from the same reading, and then those that other images still lack.

    Raises:
        PoolError: A path does not exist.
        SourceUnreachable: A path that images were added from does not exist.
        LabelError: With `labels_from_folders`, a folder is not a class, or an image is in the folders of two.
    """
    project, progress, skipped = bench.project, bench.progress, Skipped()
    files = _find_files(project, paths, skipped)
    if labels_from_folders:
        _check_folders(files, project.config.project)
    added = Added(skipped=skipped.not_images.total(), left_out=dict(skipped.names))
    added.dropped = _leave_out(bench, paths, files)
    added.regrouped = str(group_anew(bench) or "")
    with reading(project.database) as session:
        before, n_before = find_depth(session), count_deep(session)
    said: dict[str, str] | None = {} if labels_from_folders else None
    fresh = _set_apart(bench, files, said, added)
    leaders = _Leaders(project, before)
    settings = project.config.pool
    workers = count_workers(project.config.train.workers) if len(fresh) >= PARALLEL else 1
    found = inspect_files(
        fresh,
        bench.executor,
        settings.max_pixels,
        workers,
        may_be_cut=settings.truncated == "accept",
        view=None if features is None else features.view,
    )
    if features is not None:
        found = features.keep(found, len(fresh), progress)
    done = 0
    for batch in _batches(found):
        _add_batch(bench, batch, leaders, said, added)
        done += len(batch)
        progress(READING, done, len(fresh))
    with transaction(project.database) as session:
        added.images, n_groups = count_groups(session)
        added.copies = added.images - n_groups
        added.depth, added.deep = find_depth(session), count_deep(session)
        if before not in (None, added.depth):
            added.changed_depth, added.round_again = n_before, _train_again(session)
            logger.warning(
                "The largest value of images with more than 8 bits needs %s bits, not %s: the features of the %d such "
                "images that were in the pool are computed again%s.",
                added.depth,
                before,
                n_before,
                "" if added.round_again is None else f", and round {added.round_again} is trained again",
            )
        add_event(session, bench.user, "pool add", bench.now(), **dataclasses.asdict(added))
    if features is not None:
        _keep_rest(bench, features)
        added.features = features.n_computed
    return added


def _keep_rest(bench: Workbench, features: "FirstReading") -> None:
    """Compute the features that images of the pool lack after files were read, and record images that are gone."""
    with reading(bench.project.database) as session:
        refs = [ref for split in (Split.TRAIN, Split.HOLDOUT) for ref in list_refs(session, split)]
    if failed := features.keep_rest(refs, bench.progress):
        with transaction(bench.project.database) as session:
            mark_unusable(session, bench, failed)


class _Leaders:
    """Leaders of near-duplicate groups, read when they are needed. All fingerprints are compared at one depth."""

    def __init__(self, project: Project, depth: int | None) -> None:
        self._project = project
        self._depth = depth
        self._index: NearDuplicateIndex | None = None

    def reach(self, depth: int) -> None:
        """Raise the depth of the comparisons to this depth if it is larger than the current one."""
        if depth > (self._depth or 0):
            self._depth, self._index = depth, None

    def group(self, session: Session, images: Mapping[int, ImageFile]) -> list[tuple[int, int, int]]:
        """Put new images in groups: (image id, group id, distance to the group's first member) of each."""
        if not (images and self._project.config.pool.near_duplicates):
            return [(image_id, image_id, 0) for image_id in images]
        if self._index is None:
            self._index = self._read(session)
        found = self._index.group(self._at_depth((i, file.phash, file.depth) for i, file in images.items()))
        return [(image_id, leader, distance) for image_id, (leader, distance) in found.items()]

    def _read(self, session: Session) -> NearDuplicateIndex:
        index = NearDuplicateIndex(self._project.config.pool.near_duplicate_distance)
        index.add_leaders(self._at_depth(list_leaders(session)))
        return index

    def _at_depth(self, fingerprints: Iterable[tuple[int, str, int | None]]) -> dict[int, str]:
        return {image_id: at_depth(phash, own, self._depth) for image_id, phash, own in fingerprints}


def _batches(found: Iterable[Inspected]) -> Iterator[list[Inspected]]:
    batch: list[Inspected] = []
    began = 0.0
    for file in found:
        began = began if batch else time.monotonic()
        batch.append(file)
        if len(batch) == BATCH or time.monotonic() - began > SECONDS:
            yield batch
            batch = []
    if batch:
        yield batch


def _train_again(session: Session) -> int | None:
    """Reset an open round that has a model or scores at the old depth and no queries yet; return its number."""
    last = find_last_round(session)
    if last is None or last.state not in (RoundState.TRAINED, RoundState.SCORED):
        return None
    set_scores(session, last.id, None, None)
    drop_model(session, last.id)
    set_state(session, last.id, last.state, RoundState.CREATED)
    return last.number


def _find_files(project: Project, paths: Sequence[str], skipped: Skipped) -> list[str]:
    try:
        files = list(expand(paths, skipped))
        if not files:
            raise PoolError(f"No images found in {', '.join(paths)}.", "Name a folder that has images in it.")
    except PoolError:
        with reading(project.database) as session:
            check_reachable(session, project, paths)
        raise
    return files


def check_images(bench: Workbench, *, accept_missing: bool = False) -> dict[str, list[Location]]:
    """Check that every file exists and is unchanged, and record changes.

    Files that could not be read are tried again, and forgotten if they no longer exist.

    Args:
        bench: Workbench of the workspace.
        accept_missing: True to record missing files even if a large part of a folder is missing.

    Returns:
        `missing` and `unreadable` locations. A file whose bytes changed is read again as a new image.

    Raises:
        SourceUnreachable: A large part of a folder is missing, and `accept_missing` is False.
    """
    project = bench.project
    if not accept_missing:
        require_reachable(project)
    gone, back, changed = _look(project, bench.progress)
    with transaction(project.database) as session:
        drop_unreadable(session, [place.path for place in gone])
        set_location_status(session, [place.path for place in gone], LocationStatus.MISSING, bench.now())
        set_location_status(session, [place.path for place in back], LocationStatus.OK, bench.now())
    if changed:
        add_images(bench, [place.path for place in changed])
    with reading(project.database) as session:
        return {
            "missing": list_locations(session, LocationStatus.MISSING),
            "unreadable": list_locations(session, LocationStatus.UNREADABLE),
        }


def look_at_images(project: Project, progress: Progress = silent) -> dict[str, list[Location]]:
    """Check every file without recording anything.

    Returns:
        Locations by kind: `missing` now; `unreadable`, as recorded; `changed` since they were read.
    """
    gone, _, changed = _look(project, progress)
    with reading(project.database) as session:
        unreadable = list_locations(session, LocationStatus.UNREADABLE)
    lost = {place.path for place in gone}
    return {
        "missing": [place for place in gone if place.image_id is not None],
        "unreadable": [place for place in unreadable if place.path not in lost],
        "changed": [place for place in changed if place.status is not LocationStatus.UNREADABLE],
    }


def _look(project: Project, progress: Progress) -> tuple[list[Location], list[Location], list[Location]]:
    """Return the locations whose file is gone, those whose file is back unchanged, and those to read again."""
    with reading(project.database) as session:
        locations = [place for place in list_locations(session) if not (_is_lasting(place.path) or _is_left_out(place))]
    gone, back, changed = [], [], []
    for done, location in enumerate(locations, start=1):
        stamp = find_source(location.path).stamp(location.path)
        if stamp is None:
            if location.image_id is not None or _is_gone(location.path):
                gone.append(location)
        elif (
            location.status is LocationStatus.UNREADABLE
            or differs(stamp, location)
            or not has_hash(location.path, str(location.sha256), location)
        ):
            changed.append(location)
        elif location.status is LocationStatus.MISSING:
            back.append(location)
        progress("looking at files", done, len(locations))
    return gone, back, changed


def _is_gone(path: str) -> bool:
    """Return whether nothing is at a path any more. A link that leads nowhere is still there."""
    try:
        find_source(path).open(path).close()
    except (FileNotFoundError, NotADirectoryError):
        with contextlib.suppress(PoolError):  # raised for a path that is not there
            return path not in expand([path])
        return True
    except OSError:  # as in a folder that may be listed and not entered
        return False
    return False


def image_folders(project: Project) -> list[Path]:
    """Return the outermost local folders of the pool: those named in the settings, and parents of images elsewhere.

    Folders that do not exist are left out.
    """
    named = {Path(name) for name in configured_images(project) if Path(name).is_dir()}
    with reading(project.database) as session:
        places = list_locations(session, LocationStatus.OK)
        # Files that were moved away are still recorded at their old place.
        files = (find_source(place.path).local_file(place.path) for place in places)
        parents = {file.parent for file in files if file is not None}
        parents = {folder for folder in parents if folder.is_dir()}
    outermost: list[Path] = []
    for folder in sorted(named | parents, key=lambda path: len(path.parts)):
        if not any(folder.is_relative_to(other) for other in outermost):
            outermost.append(folder)
    return outermost


def look_again(bench: Workbench) -> int:
    """Check missing and unreadable files again, and record those that were found.

    Returns:
        Number of files that were found.
    """
    project = bench.project
    with reading(project.database) as session:
        missing = list_locations(session, LocationStatus.MISSING)
        unreadable = list_locations(session, LocationStatus.UNREADABLE)
    lost = [place for place in (*missing, *unreadable) if place.image_id is not None and not _is_left_out(place)]
    there = [place for place in lost if is_there(place.path)]
    missed = [place for place in there if place.status is LocationStatus.MISSING]
    # Files are read even if time and size are as recorded: another file may have taken the place of a missing one.
    same = [place.path for place in missed if place.sha256 and has_hash(place.path, place.sha256, None)]
    others = {place.path for place in there}.difference(same)
    read = inspect_files(others, bench.executor, project.config.pool.max_pixels, workers=1)
    readable = [found.path for found in read if isinstance(found, ImageFile)]
    if same:
        with transaction(project.database) as session:
            set_location_status(session, same, LocationStatus.OK, bench.now())
    if readable:
        add_images(bench, readable)
    return len(same) + len(readable)


def mark_vanished(session: Session, bench: Workbench, paths: Iterable[str]) -> list[str]:
    """Record those of the paths that no longer exist, and return them.

    Raises:
        SourceUnreachable: A large part of a folder is missing; nothing is recorded.
    """
    gone = [path for path in paths if find_source(path).stamp(path) is None]
    if gone:
        check_reachable(session, bench.project)
    set_location_status(session, gone, LocationStatus.MISSING, bench.now())
    return gone


def mark_replaced(session: Session, replaced: Iterable[Shown], now: dt.datetime) -> list[str]:
    """Record that these files no longer hold their images, and return the paths. The new bytes are read later."""
    listed = list(replaced)
    ids = find_image_ids(session, [sha256 for _, sha256 in listed])
    places = find_places(session, ids.values())
    stale = [
        place.path
        for path, sha256 in listed
        for place in places.get(ids.get(sha256, -1), ())
        if _is_same(place.path, path)
    ]
    set_replaced(session, stale, now)
    return stale


def mark_unusable(session: Session, bench: Workbench, failed: Iterable[tuple[int, str]]) -> None:
    """Record images that could not be read just now, as (image id, reason): missing, or unreadable and why.

    They are not asked about or trained on until the next `run`, `pool check` or `pool add` finds them readable again.

    Raises:
        SourceUnreachable: A large part of a folder is missing; nothing is recorded.
    """
    reasons = dict(failed)
    if reasons:
        check_reachable(session, bench.project)
    paths = {ref.path: reasons[ref.image_id] for ref in find_refs(session, reasons).values()}
    gone = set(mark_vanished(session, bench, paths))
    set_unreadable(session, {path: reason for path, reason in paths.items() if path not in gone}, bench.now())


def _leave_out(bench: Workbench, paths: Sequence[str], files: Iterable[str]) -> int:
    """Record files of the pool as missing if they are in folders that are not walked; return their number.

    A file stays in the pool if a path that is named now or in the settings leads to it, if it is below none of these
    paths, or if it belongs to the test set.

    Args:
        bench: Workbench of the workspace.
        paths: Paths that are named now.
        files: Files that these lead to.
    """
    project = bench.project
    named = [full_name(path, os.getcwd()) for path in paths]  # noqa: PTH109
    reached = set(files)
    folders: dict[str, list[str]] = {}  # scheme → names of folders and globs: nothing is below a file
    for name in dict.fromkeys([*named, *configured_images(project)]):
        if name not in reached and not _is_lasting(name):
            folders.setdefault(scheme_of(name), []).append(name)
    found: dict[str, str] = {}
    with reading(project.database) as session:
        measured = set() if project.config.evaluation.test is None else set(list_split(session, Split.HOLDOUT))
        for scheme, names in folders.items():
            source = find_source(names[0])
            tops = [source.top(name) for name in names]
            places = list_image_paths(session, LocationStatus.OK, tops if len(tops) <= FOLDERS else ("",))
            others = (path for image_id, path in places if path not in reached and image_id not in measured)
            found |= source.left_out([path for path in others if scheme_of(path) == scheme], names)
    if found:
        why = "belongs to an operating system, or alloop wrote it"
        reasons = {path: f"{LEFT_OUT}{stop} {why}" for path, stop in found.items()}
        with transaction(project.database) as session:
            set_missing(session, reasons, bench.now())
    return len(found)


def _set_apart(bench: Workbench, files: Sequence[str], said: dict[str, str] | None, added: Added) -> list[str]:
    """Return the files that are not recorded as they are now. Labels of the others are recorded here."""
    fresh: list[str] = []
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        with reading(bench.project.database) as session:
            known = find_locations(session, batch)
        unchanged = {path: stamp for path in batch if (stamp := _unchanged(known.get(path))) is not None}
        fresh += [path for path in batch if path not in unchanged]
        added.unchanged += len(unchanged)
        touched = [path for path, stamp in unchanged.items() if not looks_untouched(stamp, known[path])]
        if touched:  # found unchanged all the same; recorded, so that they are not read again each time
            with transaction(bench.project.database) as session:
                set_location_status(session, touched, LocationStatus.OK, bench.now())
        if said is not None:
            hashes = {path: str(known[path].sha256) for path in unchanged}
            with transaction(bench.project.database) as session:
                added.labeled += _label_from_folders(session, bench, hashes, said)
        bench.progress("looking at files", min(start + BATCH, len(files)), len(files))
    return fresh


def _add_batch(
    bench: Workbench, found: Sequence[Inspected], leaders: _Leaders, said: dict[str, str] | None, added: Added
) -> None:
    images = [file for file in found if isinstance(file, ImageFile)]
    leaders.reach(max((file.depth or 0 for file in images), default=0))
    now = bench.now()
    with transaction(bench.project.database) as session:
        known = find_image_ids(session, {file.sha256 for file in images})
        new = {file.sha256: file for file in images if file.sha256 not in known}
        ids = store.add_images(session, [*new.values()], now)
        groups = leaders.group(session, {ids[sha256]: file for sha256, file in new.items()})
        add_groups(session, groups)
        set_depths(session, {known[x.sha256]: x for x in images if x.sha256 in known and x.depth is not None})
        set_locations(session, found, known | ids, now)
        copies = {image_id for image_id, leader, _ in groups if leader != image_id}
        update_splits(session, {*known.values(), *copies})
        if said is not None:
            added.labeled += _label_from_folders(session, bench, {file.path: file.sha256 for file in images}, said)
    added.new += len(new)
    added.known += len(images) - len(new)
    added.near_duplicates += len(copies)
    added.unreadable += len(found) - len(images)
    broken = next((file for file in found if isinstance(file, UnreadableFile)), None)
    if broken is not None and not added.unreadable_one:
        added.unreadable_one = f"{name_of(broken.path)}: {broken.reason}"


def _label_from_folders(session: Session, bench: Workbench, sha256s: Mapping[str, str], said: dict[str, str]) -> int:
    """Record folder names as labels; `said` remembers where each image lies, over the whole call of `add_images`."""
    for path, sha256 in sha256s.items():
        other = said.setdefault(sha256, path)
        if look(_class_folder(other)) != look(_class_folder(path)):
            raise LabelError(
                f"The same image lies in the folders of two classes: {other} and {path}.",
                "Remove the wrong one, then add them again.",
            )
    judge = judge_of(bench.project.config.project)
    labels = {sha256: judge.spelled(_class_folder(path)) for path, sha256 in sha256s.items()}
    return record_imported(session, labels, judge, "folders", bench.now())


def _class_folder(location: str) -> str:
    """Return the name of the folder that holds an image."""
    return name_of(folder_of(location))


def _check_folders(files: Sequence[str], settings: ProjectConfig) -> None:
    judge = judge_of(settings)
    odd = sorted(name for name in map(judge.spelled, set(map(_class_folder, files))) if not judge.is_known(name))
    if odd:
        raise LabelError(
            f"The folder '{odd[0]}' is not one of the classes: {', '.join(settings.classes)}.",
            "With --labels-from-folders every image lies in a folder named after its class. Add the class to "
            "alloop.toml, or leave that folder out.",
        )


def _is_left_out(place: Location) -> bool:
    return place.status is LocationStatus.MISSING and (place.reason or "").startswith(LEFT_OUT)


def _is_lasting(location: str) -> bool:
    return find_source(location).is_lasting


def _is_same(one: str, other: str) -> bool:
    """Return whether two locations are the same file: a server may reach the file through a link."""
    files = [find_source(location).local_file(location) or location for location in (one, other)]
    return os.path.realpath(files[0]) == os.path.realpath(files[1])


def _unchanged(known: Location | None) -> Stamp | None:
    """Return the stamp of a file that is as recorded; None for every other file."""
    if known is None or known.sha256 is None or known.status is not LocationStatus.OK:
        return None
    stamp = find_source(known.path).stamp(known.path)
    if stamp is None or differs(stamp, known):
        return None
    return stamp if looks_untouched(stamp, known) or reads_as(known.path, known.sha256) else None
