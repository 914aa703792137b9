"""Check that the pool's files can be reached. If many are gone at once, a disk is probably not mounted.

A folder of the pool counts as unreachable if

- the folder does not exist, or
- all of its images are gone, and it had at least two, or
- more than half of its images are gone, and at least ten.

The folders are those that `[pool] images` names, and the outermost folders of other images. An image is gone if none of
its files can be read. Of a large folder, 200 images are checked, spread evenly over their names.
"""

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from alloop.errors import SourceUnreachable
from alloop.pool.given import is_given
from alloop.pool.ingest import full_path, spelled_out
from alloop.project import Project
from alloop.records import LocationStatus
from alloop.store.images import list_image_paths
from alloop.store.session import reading

AT_LEAST, SAMPLE = 10, 200


def configured_images(project: Project) -> list[str]:
    """Return the absolute paths and globs of `[pool] images`; relative ones are relative to the workspace."""
    return [full_path(name, str(project.folder)) for name in project.config.pool.images]


def require_reachable(project: Project) -> None:
    """Check some images of every folder of the pool, before work that needs them begins.

    Raises:
        SourceUnreachable: Much of a folder has vanished at once.
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
        SourceUnreachable: Much of a folder has vanished at once.
    """
    places = [(image_id, path) for image_id, path in list_image_paths(session, LocationStatus.OK) if not is_given(path)]
    everywhere: dict[int, list[str]] = {}
    for image_id, path in places:
        everywhere.setdefault(image_id, []).append(path)
    roots = _roots({os.path.dirname(path) for _, path in places}, configured_images(project))  # noqa: PTH120
    wanted = None if named is None else [_base(full_path(name, os.getcwd())) for name in named]  # noqa: PTH109
    held: dict[str, dict[int, None]] = {}
    for image_id, path in places:
        root = roots[os.path.dirname(path)]  # noqa: PTH120
        if wanted is None or any(_is_in(path, place) for place in wanted):
            held.setdefault(root, {})[image_id] = None
    for root, ids in held.items():
        _check_folder(root, list(ids), everywhere)


def is_there(path: str) -> bool:
    """Return whether a file can be read. On a disk that is not mounted, no file can."""
    return os.access(path, os.R_OK)


def _check_folder(root: str, ids: Sequence[int], everywhere: Mapping[int, Sequence[str]]) -> None:
    looked_at = ids[:: -(-len(ids) // SAMPLE)]
    gone = sum(not any(is_there(path) for path in everywhere[image_id]) for image_id in looked_at)
    much = gone >= AT_LEAST and 2 * gone > len(looked_at)
    everything = gone == len(looked_at) and (gone >= 2 or not is_there(root))
    if much or everything:
        of = f"{len(looked_at)} images" + (f" looked at, of {len(ids)}," if len(looked_at) < len(ids) else "")
        raise SourceUnreachable(
            f"{gone} of {of} in {root} cannot be reached any more: a disk may not be mounted. Nothing was recorded.",
            "Run the command again when the files are back. If they were moved, run `alloop pool add` with their new "
            "folder. If they are gone for good, run `alloop pool check --accept-missing`.",
        )


def _roots(parents: Iterable[str], configured: Iterable[str]) -> dict[str, str]:
    """Return folder of images → the outermost folder of the pool that contains it."""
    folders = set(parents)
    tops = folders | {_base(name) for name in configured}
    return {
        folder: next(str(place) for place in reversed([Path(folder), *Path(folder).parents]) if str(place) in tops)
        for folder in folders
    }


def _base(name: str) -> str:
    """Return the folder of a folder or glob: its path up to the first wildcard."""
    if os.path.lexists(name) or not glob.has_magic(name):
        return name
    folder = Path()
    for part in Path(name).parts:
        if (plain := spelled_out(part)) is None:
            break
        folder /= plain
    return str(folder)


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")
