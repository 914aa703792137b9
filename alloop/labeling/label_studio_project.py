"""The Label Studio project of a workspace: find it, create it once, check it, and set the order of tasks."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from alloop.errors import LabelingError
from alloop.labeling.connection import NotFound, ServerConnection, retrying
from alloop.labeling.label_config import (
    check_config,
    check_names,
    extended_config,
    is_generated,
    read_time,
)
from alloop.labeling.label_studio_tasks import newest_tasks, write_time
from alloop.labeling.wording import Control, Wording

_ATTEMPTS = 3
_LOOK_BACK = 50  # number of tasks in which a model's guess is looked for; tasks drawn at random have no guess
_MARKER = "alloop-workspace:"
_PUSH = "alloop-push:"


@dataclasses.dataclass(frozen=True, slots=True)
class ProjectPlan:
    """Requirements for the project.

    Attributes:
        workspace_key: Key of the workspace, which never changes. It is written into the description and finds the
            project of an interrupted creation.
        project_id: Id of a project that the user made and named in alloop.toml.
    """

    title: str
    workspace_key: str
    classes: tuple[str, ...]
    wording: Wording
    preannotate: bool
    annotations_per_image: int
    project_id: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return the project settings that control the order of tasks and the display of guesses."""
        return {
            "sampling": "Uncertainty sampling",
            "maximum_annotations": self.annotations_per_image,
            "show_collab_predictions": self.preannotate,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class OpenProject:
    """Opened project: its id, its control for the class, and the model whose scores order its queue."""

    id: int
    control: Control
    model_version: str
    n_tasks: int
    created_at: str


def open_project(
    connection: ServerConnection,
    plan: ProjectPlan,
    project_ref: str | None,
    pause: Callable[[int], None],
    created_at: str | None = None,
) -> OpenProject:
    """Find or create the project, check that it can hold our classes, and apply the settings of the loop.

    Args:
        connection: Connection to the server.
        plan: Requirements for the project.
        project_ref: Id of the project, if known.
        pause: Function that waits; see `retrying`.
        created_at: Time at which the project of that id was created, if known.

    Raises:
        LabelingError: The project was deleted, is on another server or account, or cannot hold our classes.
    """
    if project_ref is not None:
        _check_same(project_ref, plan.project_id)
        row = find_project(connection, int(project_ref))
        _check_born(connection, row, created_at)
    elif plan.project_id is not None:
        row = find_project(connection, plan.project_id)
    else:
        row = _find_by_key(connection, plan) or _create(connection, plan, pause)
    row = _fit_config(connection, plan, row)
    where = f"project {row['id']} at {connection.url}"
    control = check_config(row["label_config"], row.get("parsed_label_config"), plan.classes, where, plan.wording)
    row = _fit_settings(connection, plan, row)
    return OpenProject(row["id"], control, row.get("model_version") or "", int(row.get("task_number") or 0), _born(row))


def find_project(connection: ServerConnection, project_id: int) -> dict[str, Any]:
    """Return the server's description of the project.

    Raises:
        LabelingError: The project does not exist.
    """
    try:
        row: dict[str, Any] = connection.read(f"api/projects/{project_id}/")
    except NotFound as error:
        raise LabelingError(
            f"Label Studio at {connection.url} has no project {project_id} that this key may see: deleted, or another "
            "server or account.",
            "Labels pulled so far are safe in the workspace. Check that address and key are the right ones; to go on "
            "in a new project, run `alloop push --new-project`.",
        ) from error
    return row


def find_last_push(row: dict[str, Any], workspace_key: str) -> str | None:
    """Return the id of a workspace's last push from the project's description; None before the first push."""
    words = (row.get("description") or "").split()
    return next((word.rpartition(":")[2] for word in words if word.startswith(_push_word(workspace_key))), None)


def with_last_push(row: dict[str, Any], workspace_key: str, push_id: str) -> str:
    """Return the project's description with a new push id. Other text in the description stays."""
    description = str(row.get("description") or "").rstrip()
    word = _push_word(workspace_key) + push_id
    pattern = rf"(?<!\S){re.escape(_push_word(workspace_key))}\S*"
    if re.search(pattern, description):
        return re.sub(pattern, word, description)
    return f"{description} {word}".lstrip()


def _push_word(workspace_key: str) -> str:
    return f"{_PUSH}{workspace_key}:"


def _check_same(project_ref: str, project_id: int | None) -> None:
    if not project_ref.isdecimal():
        raise LabelingError(
            f"This workspace's tasks are in {project_ref!r}, which is not the id of a Label Studio project.",
            "Set [labeling] backend back to what the workspace began with, or start a new workspace.",
        )
    if project_id is not None and int(project_ref) != project_id:
        raise LabelingError(
            f"alloop.toml names Label Studio project {project_id}, but this workspace's tasks are in {project_ref}.",
            f"Set [labeling.label_studio] project_id to {project_ref}, or switch to {project_id} with "
            "`alloop push --new-project`, which sends the open images there.",
        )


def _born(row: dict[str, Any]) -> str:
    return write_time(read_time(row["created_at"]))


def _check_born(connection: ServerConnection, row: dict[str, Any], created_at: str | None) -> None:
    """Compare the time of creation. Ids repeat on other servers, and on some servers after a deletion."""
    if created_at and _born(row) != created_at:
        raise LabelingError(
            f"Project {row['id']} at {connection.url}, {row.get('title')!r}, is not the one this workspace's tasks are "
            f"in: it was made at {_born(row)}, ours at {created_at}. This is another server, or ours was deleted.",
            "It was left alone, and labels pulled so far are safe in the workspace. Point alloop at the right server, "
            "or continue with `alloop push --new-project`, which sends the open images to a new project here.",
        )


def _find_by_key(connection: ServerConnection, plan: ProjectPlan) -> dict[str, Any] | None:
    """Return the oldest project that this workspace created earlier."""
    found: list[int] = []
    number = 1
    while True:
        # With all fields the server would parse the interface of each project and count its answers.
        wanted = {"title": plan.title, "page": number, "page_size": 100, "include": "id,description"}
        reply = connection.read("api/projects/", wanted)
        found += [row["id"] for row in reply["results"] if _marker(plan) in (row.get("description") or "").split()]
        if not reply.get("next"):
            break
        number += 1
    return find_project(connection, min(found)) if found else None


def _create(connection: ServerConnection, plan: ProjectPlan, pause: Callable[[int], None]) -> dict[str, Any]:
    body = {
        "title": plan.title,
        "description": f"Images chosen by alloop. Please keep the next word: {_marker(plan)}",
        "label_config": plan.wording.build(plan.classes),
        **plan.settings(),
    }
    row: dict[str, Any] = retrying(
        lambda: connection.send("POST", "api/projects/", body), lambda: _find_by_key(connection, plan), _ATTEMPTS, pause
    )
    return find_project(connection, row["id"])


def _marker(plan: ProjectPlan) -> str:
    return _MARKER + plan.workspace_key


def _fit_config(connection: ServerConnection, plan: ProjectPlan, row: dict[str, Any]) -> dict[str, Any]:
    """Add classes to an interface that alloop wrote. An interface that a person edited is not changed."""
    xml = row["label_config"]
    if not is_generated(xml, plan.wording):
        return row
    check_names(plan.classes)
    wanted = extended_config(xml, plan.classes, plan.wording)
    if wanted.split() == xml.split() or _has_all(xml, plan):
        return row
    connection.change(f"api/projects/{row['id']}/", {"label_config": wanted})
    return find_project(connection, row["id"])


def _has_all(xml: str, plan: ProjectPlan) -> bool:
    # Only the order differs. People know the number keys, so the order stays.
    return len(extended_config(xml, plan.classes, plan.wording).splitlines()) == len(xml.strip().splitlines())


def _fit_settings(connection: ServerConnection, plan: ProjectPlan, row: dict[str, Any]) -> dict[str, Any]:
    changes = {name: value for name, value in plan.settings().items() if row.get(name) != value}
    # A run that was interrupted after its last import has not set the model whose scores order the queue.
    newest = newest_tasks(connection, row["id"], "id,predictions,model_version,created_at", _LOOK_BACK)
    versions = [guess.get("model_version") for task in newest for guess in task.get("predictions") or []]
    if versions and versions[0] and versions[0] != row.get("model_version"):
        changes["model_version"] = versions[0]
    if changes:
        connection.change(f"api/projects/{row['id']}/", changes)
    return row | changes
