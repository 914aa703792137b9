"""Check that the pool's files can be reached. If many are gone at once, a disk is probably not mounted.

A folder of the pool counts as unreachable if

- the folder does not exist, or
- all of its images are gone, and it had at least two, or
- more than half of its images are gone, and at least ten.

The folders are those that `[pool] images` names, and the outermost folders of other images. An image is gone if none of
its files can be read. Of a large folder, 200 images are checked, spread evenly over their names.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sqlalchemy.orm import Session

from alloop.errors import SourceUnreachable
from alloop.pool.sources import find_source, folder_of, full_name
from alloop.project import Project
from alloop.records import LocationStatus
from alloop.store.images import list_image_paths
from alloop.store.session import reading

AT_LEAST, SAMPLE = 10, 200


def configured_images(project: Project) -> list[str]:
    """Return the full names in `[pool] images`: locations, folders and globs. Relative ones start at the workspace."""
    return [full_name(name, str(project.folder)) for name in project.config.pool.images]


def require_reachable(project: Project) -> None:
    """Check some images of every folder of the pool, before work that needs them begins.

    Raises:
        SourceUnreachable: A large part of a folder is missing.
    """
    with reading(project.database) as session:
        check_reachable(session, project)


def check_reachable(session: Session, project: Project, named: Sequence[str] | None = None) -> None:
    """Check some images of every folder of the pool.

    Args:
        session: Database session; its locations say which files existed when they were last checked.
        project: The workspace.
        named: Check only files below these folders and globs; None: all files.

    Raises:
        SourceUnreachable: A large part of a folder is missing.
    """
    places = [
        (image_id, path)
        for image_id, path in list_image_paths(session, LocationStatus.OK)
        if not find_source(path).is_lasting
    ]
    everywhere: dict[int, list[str]] = {}
    for image_id, path in places:
        everywhere.setdefault(image_id, []).append(path)
    roots = _roots({folder_of(path) for _, path in places}, configured_images(project))
    wanted = None if named is None else [_top(full_name(name, os.getcwd())) for name in named]  # noqa: PTH109
    held: dict[str, dict[int, None]] = {}
    for image_id, path in places:
        root = roots[folder_of(path)]
        if wanted is None or any(_is_in(path, place) for place in wanted):
            held.setdefault(root, {})[image_id] = None
    for root, ids in held.items():
        _check_folder(root, list(ids), everywhere)


def is_there(location: str) -> bool:
    """Return whether an image or folder can be read. On a disk that is not mounted, no file can."""
    return find_source(location).is_there(location)


def _check_folder(root: str, ids: Sequence[int], everywhere: Mapping[int, Sequence[str]]) -> None:
    looked_at = ids[:: -(-len(ids) // SAMPLE)]
    gone = sum(not any(is_there(path) for path in everywhere[image_id]) for image_id in looked_at)
    much = gone >= AT_LEAST and 2 * gone > len(looked_at)
    everything = gone == len(looked_at) and (gone >= 2 or not is_there(root))
    if much or everything:
        of = f"{len(looked_at)} images" + (f" looked at, of {len(ids)}," if len(looked_at) < len(ids) else "")
        raise SourceUnreachable(
            f"{gone} of {of} in {root} cannot be reached any more: {find_source(root).outage}. Nothing was recorded.",
            "Run the command again when the files are back. If they were moved, run `alloop pool add` with their new "
            "folder. If they are gone for good, run `alloop pool check --accept-missing`.",
        )


def _roots(parents: Iterable[str], configured: Iterable[str]) -> dict[str, str]:
    """Return folder of images → the outermost folder of the pool that contains it."""
    folders = set(parents)
    tops = folders | {_top(name) for name in configured}
    return {folder: [place for place in _upwards(folder) if place in tops][-1] for folder in folders}


def _upwards(folder: str) -> Iterator[str]:
    """Yield a folder and the folders that contain it, the outermost last."""
    while True:
        yield folder
        above = folder_of(folder)
        if above in (folder, ""):
            return
        folder = above


def _top(name: str) -> str:
    return find_source(name).top(name)


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(place if place.endswith(":") else place.rstrip("/") + "/")
