"""A labeling back end of another package: people write into a JSON file. It has only what the contract requires."""

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alloop.errors import LabelingError
from alloop.labeling.annotator import Annotator
from alloop.labeling.backend import Backend, BackendSetup
from alloop.records import Answer, ImageRef, ListedTask, Outcome, OutgoingTask, PullPage, TaskAnswers


class Notebook:
    """Tasks are entries of a file: id → key, sha256, file, and the answer with its time."""

    source = "notebook"
    identity = ""

    def __init__(self, file: Path, per_page: int = 2) -> None:
        self._file = file
        self._per_page = per_page

    def open_project(self, project_ref: str | None, identity: str | None = None) -> str:
        if project_ref not in (None, "notebook"):
            raise LabelingError(f"{project_ref} is not a notebook.")
        return "notebook"

    def last_push(self) -> str | None:
        return self._read()["last_push"]

    def set_last_push(self, push_id: str) -> None:
        self._write({**self._read(), "last_push": push_id})

    def reconcile(self, images: Mapping[str, str]) -> Mapping[str, str]:
        return {task.key: task.id for task in self.list_tasks() if images.get(task.key) == task.sha256}

    def push(self, tasks: Sequence[OutgoingTask]) -> Iterator[Mapping[str, str]]:
        for start in range(0, len(tasks), self._per_page):
            book, made = self._read(), {}
            for task in tasks[start : start + self._per_page]:
                book["written"] += 1
                made[task.key] = str(book["written"])
                entry = {"key": task.key, "sha256": task.image.sha256, "file": task.image.path, "moment": 0}
                book["tasks"][made[task.key]] = entry
            self._write(book)
            yield made

    def pull(self, mark: str | None) -> Iterator[PullPage]:
        changed = [(task_id, entry) for task_id, entry in self._tasks().items() if entry["moment"] >= int(mark or 0)]
        if changed:
            moment = max(entry["moment"] for _, entry in changed)
            yield PullPage(tuple(_answered(*pair) for pair in changed), f"{moment:06d}")

    def list_tasks(self) -> Sequence[ListedTask]:
        return [_task(*pair) for pair in self._tasks().items()]

    def show(self, images: Mapping[str, Sequence[ImageRef]]) -> int:
        book, changed = self._read(), 0
        for task_id, places in images.items():
            entry = book["tasks"][task_id]
            here = [image.path for image in places if image.sha256 == entry["sha256"]]
            if here and entry["file"] not in here:
                entry["file"], changed = here[0], changed + 1
        self._write(book)
        return changed

    def withdraw(self, task_ids: Sequence[str]) -> frozenset[str]:
        book = self._read()
        gone = {task_id for task_id in task_ids if "outcome" not in book["tasks"].get(task_id, {})}
        self._write({**book, "tasks": {name: entry for name, entry in book["tasks"].items() if name not in gone}})
        return frozenset(gone)

    def answer(self, task_id: str, outcome: Outcome | None, value: str | None = None) -> None:
        """Write a person's answer, or delete it (None)."""
        book = self._read()
        entry = book["tasks"][task_id]
        book["moment"] += 1
        entry["moment"] = book["moment"]
        entry.pop("outcome", None)
        if outcome is not None:
            entry |= {"outcome": outcome.value, "value": value}
        self._write(book)

    def _tasks(self) -> dict[str, dict[str, Any]]:
        return self._read()["tasks"]

    def _read(self) -> dict[str, Any]:
        if not self._file.exists():
            return {"tasks": {}, "written": 0, "moment": 0, "last_push": None}
        return json.loads(self._file.read_text())

    def _write(self, book: dict[str, Any]) -> None:
        self._file.write_text(json.dumps(book))


def _task(task_id: str, entry: Mapping[str, Any]) -> ListedTask:
    return ListedTask(task_id, entry["key"], entry["sha256"])


def _answered(task_id: str, entry: Mapping[str, Any]) -> TaskAnswers:
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=entry["moment"])
    answers = ()
    if "outcome" in entry:
        answers = (Answer(task_id, "ann", Outcome(entry["outcome"]), entry["value"], moment),)
    return TaskAnswers(_task(task_id, entry), answers, entry["file"])


def _build(setup: BackendSetup) -> Annotator:
    return Notebook(setup.folder / setup.settings.labeling.options.get("file", "notebook.json"))


BACKEND = Backend(_build)
