"""Whether the pool can be reached: where much of it vanishes at once, a disk is not mounted, and no image is gone.

The rule, for each folder of the pool (those that `[pool] images` names, and the outermost ones of images elsewhere):

- the folder is not there, or
- all of its images are gone at once, two at least, or
- more than half of its images are gone at once, ten at least.

An image is gone when none of its files can be read. Of large folders 200 images are looked at, evenly over their names.
"""

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from alloop.errors import SourceUnreachable
from alloop.pool.given import is_given
from alloop.pool.ingest import full_path
from alloop.project import Project
from alloop.records import LocationStatus
from alloop.store.images import list_image_paths
from alloop.store.session import reading

AT_LEAST, SAMPLE = 10, 200


def configured_images(project: Project) -> list[str]:
    """What `[pool] images` names; relative to the workspace, wherever the command is given."""
    return [full_path(name, str(project.folder)) for name in project.config.pool.images]


def require_reachable(project: Project) -> None:
    """Look at some images of every folder of the pool before work begins that needs them.

    Raises:
        SourceUnreachable: Much of a folder has vanished at once.
    """
    with reading(project.database) as session:
        check_reachable(session, project)


def check_reachable(session: Session, project: Project, named: Sequence[str] | None = None) -> None:
    """Look at some images of every folder of the pool.

    Args:
        session: Knows which images were there when they were last looked at.
        project: The workspace.
        named: Only folders and globs that are, or lie below, one of these; None: all.

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
    """Whether a file can be read: on a disk that is gone, or a server that does not answer, none can."""
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
            "Run it again when they are back. If they have moved, `alloop pool add` them from where they are now; if "
            "they are gone for good, say so with `alloop pool check --accept-missing`.",
        )


def _roots(parents: Iterable[str], configured: Iterable[str]) -> dict[str, str]:
    """Folder of images → the outermost folder of the pool that it lies in."""
    folders = set(parents)
    tops = folders | {_base(name) for name in configured}
    return {
        folder: next(str(place) for place in reversed([Path(folder), *Path(folder).parents]) if str(place) in tops)
        for folder in folders
    }


def _base(name: str) -> str:
    """The folder that a folder or glob is about: all of it up to the first wildcard."""
    if os.path.lexists(name) or not glob.has_magic(name):
        return name
    parts = Path(name).parts
    n_plain = next((n for n, part in enumerate(parts) if glob.has_magic(part) and _unescaped(part) == part), len(parts))
    return str(Path(*(_unescaped(part) for part in parts[:n_plain])))


def _unescaped(part: str) -> str:
    """A part of a glob in which only brackets around one sign stood, as `glob.escape` writes them, without these."""
    plain = part.replace("[[]", "[").replace("[*]", "*").replace("[?]", "?")
    return plain if glob.escape(plain) == part else part


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")
