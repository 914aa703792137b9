"""Annotator for people in Label Studio: pushes each task once, and pulls answers with all their changes."""

import datetime as dt
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alloop.errors import LabelingError, ServerUnavailable
from alloop.labeling import label_studio_tasks as task_list
from alloop.labeling.connection import Fate, ServerConnection, Unanswered
from alloop.labeling.images import ImageUrls
from alloop.labeling.label_config import HASH_KEY, TASK_KEY, prediction, read_annotation, read_time
from alloop.labeling.label_studio_project import (
    OpenProject,
    ProjectPlan,
    find_last_push,
    find_project,
    open_project,
    with_last_push,
)
from alloop.records import ImageRef, ListedTask, OutgoingTask, PullPage, TaskAnswers

_ATTEMPTS = 3
_PULL_PAGE = 500
# A change gets its time before it can be read, so a pull between these moments must not skip it. The overlap also
# covers small differences between the clocks of a server's workers.
_OVERLAP = dt.timedelta(seconds=30)


class LabelStudioAnnotator:
    """The `Annotator` over a Label Studio server.

    Args:
        connection: Connection to the server.
        images: Images' addresses for browsers.
        plan: Requirements for the project.
        push_batch: Number of tasks per import call; the server accepts a whole batch or nothing.
        settle: Seconds to wait for tasks of an import whose reply was lost, before it is sent again.
        patience: Seconds of the first pause in that wait; each further pause is twice as long.
    """

    def __init__(
        self,
        connection: ServerConnection,
        images: ImageUrls,
        plan: ProjectPlan,
        push_batch: int = 500,
        settle: float = 30.0,
        patience: float = 0.5,
    ) -> None:
        self._connection = connection
        self._images = images
        self._plan = plan
        self._push_batch = push_batch
        self._settle = settle
        self._patience = patience
        self._project: OpenProject | None = None
        self._model_version = ""
        self._users: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"LabelStudioAnnotator({self._connection!r}, project={self._project.id if self._project else None})"

    @property
    def source(self) -> str:
        return "label-studio"

    def open_project(self, project_ref: str | None, identity: str | None = None) -> str:
        project = open_project(self._connection, self._plan, project_ref, self._pause, identity)
        self._project, self._model_version = project, project.model_version
        return str(project.id)

    @property
    def identity(self) -> str:
        """Time at which the project was created. Projects of the same number on two servers differ in it."""
        return self._opened.created_at

    def last_push(self) -> str | None:
        return find_last_push(find_project(self._connection, self._opened.id), self._plan.workspace_key)

    def set_last_push(self, push_id: str) -> None:
        row = find_project(self._connection, self._opened.id)
        changed = {"description": with_last_push(row, self._plan.workspace_key, push_id)}
        self._connection.change(f"api/projects/{self._opened.id}/", changed)

    def reconcile(self, images: Mapping[str, str]) -> Mapping[str, str]:
        """Find the tasks, and delete untouched copies that a request delivered twice has left.

        All copies that people have started stay. If nobody has started one, a single copy stays.
        """
        if not images:
            return {}
        found = task_list.refs_by_key(self._connection, self._opened.id, images, self._n_tasks())
        copied = [ref for refs in found.values() if len(refs) > 1 for ref in refs]
        if not copied:
            return {key: refs[0] for key, refs in found.items()}
        free = task_list.untouched_refs(self._connection, self._opened.id, copied)
        kept = {key: next((ref for ref in refs if ref not in free), refs[0]) for key, refs in found.items()}
        self.withdraw([ref for ref in copied if ref in free and ref not in kept.values()])
        return kept

    def push(self, tasks: Sequence[OutgoingTask]) -> Iterator[Mapping[str, str]]:
        if tasks:
            find_project(self._connection, self._opened.id)  # raises for a deleted project before images are uploaded
        for start in range(0, len(tasks), self._push_batch):
            batch = tasks[start : start + self._push_batch]
            done = self._push_whole(batch)
            versions = [task.model_version or "alloop" for task in batch if task.confidence is not None]
            if versions:
                self._order_by(versions[-1])
            yield done

    def pull(self, mark: str | None) -> Iterator[PullPage]:
        project_id = find_project(self._connection, self._opened.id)["id"]
        self._users = {}
        latest = mark or ""
        for rows in task_list.changed_since(self._connection, project_id, mark, _PULL_PAGE):
            tasks = tuple(self._answers(row, task) for row in rows if (task := task_list.listed_task(row)) is not None)
            safe = task_list.write_time(read_time(rows[-1]["updated_at"]) - _OVERLAP)
            # Times in this spelling sort as text. A mark never goes back.
            latest = max(latest, safe)
            yield PullPage(tasks, latest)

    def list_tasks(self) -> Sequence[ListedTask]:
        # For a deleted project the server lists no tasks, which must not be mistaken for "all tasks deleted".
        project_id = find_project(self._connection, self._opened.id)["id"]
        return task_list.all_tasks(self._connection, project_id)

    def show(self, images: Mapping[str, Sequence[ImageRef]]) -> int:
        data_key, changed = self._opened.control.data_key, 0
        for row in task_list.some_rows(self._connection, self._opened.id, list(images)):
            task = task_list.listed_task(row)
            places = [image for image in images[task.id] if task.sha256 == image.sha256] if task is not None else []
            addresses = self._addresses(places)
            if addresses and row["data"].get(data_key) not in addresses:
                data = {**row["data"], data_key: addresses[0]}  # the server replaces the whole dictionary
                self._connection.change(f"api/tasks/{row['id']}/", {"data": data})
                changed += 1
        return changed

    def withdraw(self, task_ids: Sequence[str]) -> frozenset[str]:
        project_id = find_project(self._connection, self._opened.id)["id"]
        gone: set[str] = set()
        for start in range(0, len(task_ids), 100):
            asked = task_ids[start : start + 100]
            free = task_list.untouched_refs(self._connection, project_id, asked)
            if free:
                self._delete(project_id, sorted(map(task_list.task_number, free)))
            gone |= set(asked) - task_list.existing_refs(self._connection, project_id, asked)
        return frozenset(gone)

    @property
    def _opened(self) -> OpenProject:
        if self._project is None:
            raise RuntimeError("open_project() comes first")
        return self._project

    def _n_tasks(self) -> int:
        return int(find_project(self._connection, self._opened.id).get("task_number") or 0)

    def _pause(self, attempt: int) -> None:
        time.sleep(self._patience * 2 ** (attempt - 1))

    def _delete(self, project_id: int, ids: list[int]) -> None:
        body = {"selectedItems": {"all": False, "included": ids}}
        try:
            self._connection.send("POST", "api/dm/actions", body, params={"project": project_id, "id": "delete_tasks"})
        except Unanswered:
            self._pause(1)  # the caller checks which tasks still exist

    def _push_whole(self, batch: Sequence[OutgoingTask]) -> dict[str, str]:
        """Create one task per query of the batch, despite lost replies; raise if that fails. Nothing is sent twice."""
        urls = self._images.urls(self._opened.id, [task.image for task in batch])
        done: dict[str, str] = {}
        missing = list(batch)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                done |= self._import(missing, urls)
                return {task.key: done[task.key] for task in batch}
            except Unanswered as error:
                done |= self._wait_for(missing, error.fate, attempt)
                missing = [task for task in batch if task.key not in done]
                if not missing:
                    return {task.key: done[task.key] for task in batch}
                if attempt == _ATTEMPTS:
                    raise self._gave_up(error, len(missing), len(batch)) from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _import(self, batch: Sequence[OutgoingTask], urls: Mapping[str, str]) -> dict[str, str]:
        body = [self._task(task, urls[task.image.sha256]) for task in batch]
        path = f"api/projects/{self._opened.id}/import"
        reply = self._connection.send("POST", path, body, params={"return_task_ids": "true"})
        ids = reply.get("task_ids") if isinstance(reply, dict) else None
        if not isinstance(ids, list) or len(ids) != len(batch):
            # Editions that import in the background answer before the tasks exist.
            raise Unanswered(
                f"Label Studio at {self._connection.url} accepted {len(batch)} tasks, but returned "
                f"{len(ids) if isinstance(ids, list) else 'no'} ids.",
                "Run the same command again: tasks that arrived are recognized by their key.",
                Fate.OPEN,
            )
        return {task.key: f"{task_id}:{task.key}" for task, task_id in zip(batch, ids, strict=True)}

    def _task(self, task: OutgoingTask, url: str) -> dict[str, Any]:
        project = self._opened
        data = {
            project.control.data_key: url,
            TASK_KEY: task.key,
            HASH_KEY: task.image.sha256,
            "alloop_file": Path(task.image.path).name,
        }
        guess = prediction(task, project.control, self._plan.preannotate, self._plan.wording)
        return {"data": data} | ({"predictions": [guess]} if guess else {})

    def _wait_for(self, batch: Sequence[OutgoingTask], fate: Fate, attempt: int) -> dict[str, str]:
        """Poll after a request with an unknown outcome until all tasks are found or can no longer arrive."""
        if fate is Fate.LOST:
            self._pause(attempt)
            return {}
        images = {task.key: task.image.sha256 for task in batch}
        deadline = time.monotonic() + (self._settle if fate is Fate.OPEN else 0.0)
        look = attempt
        while True:
            self._pause(look)
            found = dict(self.reconcile(images))
            if len(found) == len(images) or time.monotonic() >= deadline:
                return found
            look = min(look + 1, 5)

    def _gave_up(self, error: Unanswered, n_missing: int, n_batch: int) -> ServerUnavailable:
        return ServerUnavailable(
            f"{n_missing} of {n_batch} tasks could not be sent in {_ATTEMPTS} attempts. {error.message}",
            "Run the same command again later. Tasks that arrived are recognized by their key and not sent twice.",
        )

    def _order_by(self, model_version: str) -> None:
        """Order tasks by this model's scores. The project must already hold predictions of that version."""
        if self._model_version != model_version:
            self._connection.change(f"api/projects/{self._opened.id}/", {"model_version": model_version})
            self._model_version = model_version

    def _addresses(self, places: Sequence[ImageRef]) -> list[str]:
        """Return the addresses of those places of an image that people can reach.

        Raises:
            LabelingError: People can reach none of the places.
        """
        found: list[str] = []
        problem: LabelingError | None = None
        for image in places:
            try:
                found.append(self._images.urls(self._opened.id, [image])[image.sha256])
            except LabelingError as error:
                problem = error
        if problem is not None and not found:
            raise problem
        return found

    def _answers(self, row: Mapping[str, Any], task: ListedTask) -> TaskAnswers:
        control = self._opened.control.name
        answers = tuple(
            read_annotation(annotation, control, self._user(annotation.get("completed_by")), self._plan.wording)
            for annotation in sorted(row.get("annotations") or [], key=lambda annotation: int(annotation["id"]))
        )
        file = self._images.file(str(row["data"].get(self._opened.control.data_key) or ""))
        return TaskAnswers(task, answers, file)

    def _user(self, completed_by: Any) -> str:
        user_id = completed_by.get("id") if isinstance(completed_by, Mapping) else completed_by
        if not isinstance(user_id, int):
            return "unknown user"
        if user_id not in self._users:
            people = self._connection.read("api/users/")
            self._users = {person["id"]: person.get("email") or person.get("username") or "" for person in people}
            self._users.setdefault(user_id, "")
        return self._users[user_id] or f"user {user_id}"
