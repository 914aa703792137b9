"""Detection of a restored database and of a second copy of the workspace.

Every push has a random id. It is stored in the database, in the workspace folder, and with the tasks (in the
description of a Label Studio project, or in a file beside the sheets). If the id with the tasks is not the database's,
there was a push that the database does not know. If the folder has that id, the database is older than its folder: it
was restored from a backup. If not, another copy of the workspace pushed, or the whole folder was restored.
"""

import json
import logging
import secrets
from pathlib import Path

from alloop.errors import LabelingError
from alloop.files import write_json
from alloop.labeling.annotator import Annotator
from alloop.loop.workbench import Workbench
from alloop.project import Project
from alloop.store.queries import count_open_by_source, find_by_keys
from alloop.store.session import reading, transaction
from alloop.store.workspace import Sync, add_event, find_sync, set_last_push, set_next_push

FILE_NAME = ".last-push.json"
logger = logging.getLogger("alloop")


def is_overtaken(project: Project, annotator: Annotator) -> bool:
    """Return whether the last push is known neither to our database nor to our folder: another copy made it."""
    there = annotator.last_push()
    return there is not None and there not in _known(project, annotator) and there != _in_folder(project, annotator)


def check_last_push(bench: Workbench, annotator: Annotator, *, take_over: bool = False) -> None:
    """Compare the three ids. Called after opening the project, and before every push.

    A restored database continues with a warning: key and hash show which tasks are its own. A copy is stopped: it would
    record answers to questions of the other copy and ask people the same questions twice.

    Args:
        bench: Workbench of the workspace.
        annotator: Labeling back end. Its project is open and recorded in the database.
        take_over: True to continue here although another copy has pushed.

    Raises:
        LabelingError: Another copy has pushed, or the project holds none of our tasks.
    """
    there, known = annotator.last_push(), _known(bench.project, annotator)
    if there is None:  # no push yet, the description was cleared, or our tasks are elsewhere
        _check_any_is_there(bench, annotator)
        return
    if there not in known and there != _in_folder(bench.project, annotator) and not take_over:
        raise LabelingError(
            f"The last push of this workspace to its {annotator.source} project did not come from "
            f"{bench.project.folder}: another copy of the workspace made it, or this folder was restored from a backup "
            "made before it.",
            "To continue here, run `alloop push --take-over`; the other copy is stopped once this one has pushed. To "
            "give this copy a project of its own, run `alloop push --new-project`. Labels pulled so far are kept.",
        )
    if there not in known:
        _say_so(bench, annotator, take_over=take_over)
    _settle(bench, annotator, there)


def begin_push(bench: Workbench, annotator: Annotator) -> None:
    """Store a new id for the next push.

    If this is killed in the middle, the next command still knows the id that it finds.

    Raises:
        LabelingError: Another copy of the workspace has pushed.
    """
    check_last_push(bench, annotator)
    push_id = secrets.token_hex(8)
    with transaction(bench.project.database) as session:
        set_next_push(session, annotator.source, push_id)
    annotator.set_last_push(push_id)
    _settle(bench, annotator, push_id)


def _check_any_is_there(bench: Workbench, annotator: Annotator) -> None:
    """Look for our tasks if the project has lost the id of our last push. Otherwise all of them would count as deleted.

    Raises:
        LabelingError: Questions are open, but the project holds none of our tasks.
    """
    with reading(bench.project.database) as session:
        sync, n_open = find_sync(session, annotator.source), count_open_by_source(session).get(annotator.source, 0)
    if sync is None or sync.last_push is None or n_open == 0:
        return
    keys = [task.key for task in annotator.list_tasks()]
    with reading(bench.project.database) as session:
        found = find_by_keys(session, keys)
    if not found:
        raise LabelingError(
            f"None of this workspace's tasks is in its {annotator.source} project: {n_open} images are being asked "
            "about. Nothing was recorded.",
            "Put the tasks back, or correct where they are ([labeling.csv] folder). If they are lost, run `alloop push "
            "--new-project`: every open question is asked again.",
        )


def _say_so(bench: Workbench, annotator: Annotator, *, take_over: bool) -> None:
    if take_over:
        words = "This workspace continues in place of its other copy."
    else:
        words = (
            "The database is older than its tasks: it was restored from a backup, and pushes made after the backup are "
            "not in it. alloop continues with the tasks that the database knows."
        )
    logger.warning("%s Other tasks are not changed; `alloop labels adopt` records their answers.", words)
    with transaction(bench.project.database) as session:
        add_event(session, bench.user, "taken over" if take_over else "database restored", bench.now())


def _settle(bench: Workbench, annotator: Annotator, push_id: str) -> None:
    """Store the id in the database and in the folder, unless it is already stored."""
    if _in_folder(bench.project, annotator) != push_id:
        write_json(_path(bench.project), {**_read(_path(bench.project)), annotator.source: push_id})
    with reading(bench.project.database) as session:
        sync = find_sync(session, annotator.source)
    if sync is not None and (sync.last_push, sync.next_push) != (push_id, None):
        with transaction(bench.project.database) as session:
            set_last_push(session, annotator.source, push_id)


def _known(project: Project, annotator: Annotator) -> set[str | None]:
    with reading(project.database) as session:
        sync: Sync | None = find_sync(session, annotator.source)
    return set() if sync is None else {sync.last_push, sync.next_push}


def _in_folder(project: Project, annotator: Annotator) -> str | None:
    return _read(_path(project)).get(annotator.source)


def _read(path: Path) -> dict[str, str]:
    try:
        return {str(source): str(push_id) for source, push_id in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _path(project: Project) -> Path:
    return project.folder / FILE_NAME
