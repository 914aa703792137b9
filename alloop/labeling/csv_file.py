"""People with a spreadsheet: each push writes a sheet to fill in, each pull reads all of them."""

import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from alloop.errors import LabelingError
from alloop.files import write_json
from alloop.labeling.sheets import Sheet, list_sheets, read_sheet, write_sheet
from alloop.records import Answer, ListedTask, Outcome, OutgoingTask, PullPage, TaskAnswers

_PROJECT = "sheets"
_MEMORY = ".seen.json"
_PUSHES = ".pushes.json"

# A cell as it was last seen: label, annotator, and the time of the sheet in which it first looked like that.
_Seen = dict[str, tuple[str, str, str]]


class CsvAnnotator:
    """The `Annotator` over batch sheets.

    A task's id is its key, so rows may be sorted and moved between sheets. An empty label cell is no answer, a cleared
    one takes the answer back, a deleted row deletes the task. When a cell got its value is known from the time of its
    sheet, remembered in a small file beside the sheets; should that be lost, everything reads as just changed.

    Args:
        folder: Where the sheets are.
        classes: Only tells which word means "skip".
        preannotate: Show the model's guess in a column of its own.
        annotations_per_image: Rows for each image, to be filled by different people.
        push_batch: Rows for each sheet.
        workspace_key: Whose last push is remembered; several workspaces may share a folder.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        *,
        preannotate: bool = False,
        annotations_per_image: int = 1,
        push_batch: int = 10_000,
        workspace_key: str = "",
    ) -> None:
        self._folder = folder
        # Somebody who calls a class "skip" writes (skip) for not knowing.
        self.skip_word = "(skip)" if "skip" in {name.lower() for name in classes} else "skip"
        self._preannotate = preannotate
        self._copies = annotations_per_image
        self._push_batch = push_batch
        self._workspace_key = workspace_key

    @property
    def source(self) -> str:
        return "csv"

    def open_project(self, project_ref: str | None, identity: str | None = None) -> str:
        if project_ref not in {None, _PROJECT}:
            raise LabelingError(
                f"This workspace's tasks are in {project_ref!r}, not in sheets.",
                "Set labeling.backend back to what the workspace began with, or start a new workspace.",
            )
        self._sheets()
        return _PROJECT

    @property
    def identity(self) -> str:
        return ""

    def last_push(self) -> str | None:
        return self._pushes().get(self._workspace_key)

    def set_last_push(self, push_id: str) -> None:
        write_json(self._folder / _PUSHES, {**self._pushes(), self._workspace_key: push_id})

    def reconcile(self, images: Mapping[str, str]) -> Mapping[str, str]:
        return {task.key: task.id for task in self.list_tasks() if images.get(task.key) == task.sha256}

    def push(self, tasks: Sequence[OutgoingTask]) -> Iterator[Mapping[str, str]]:
        for start in range(0, len(tasks), self._push_batch):
            batch = tasks[start : start + self._push_batch]
            rows = [self._question(task, copy) for task in batch for copy in range(1, self._copies + 1)]
            write_sheet(self._next_path(), self._header(), rows)
            yield {task.key: task.key for task in batch}

    def pull(self, mark: str | None) -> Iterator[PullPage]:
        sheets = self._sheets()
        seen = self._remember(sheets)
        moments: dict[str, str] = {}
        rows: dict[str, list[tuple[str, Mapping[str, str]]]] = {}
        for sheet in sheets:
            for row in sheet.rows:
                external_id = _external_id(row)
                rows.setdefault(row["key"], []).append((external_id, row))
                moments[row["key"]] = max(moments.get(row["key"], ""), seen[external_id][2])
        changed = sorted((moment, key) for key, moment in moments.items() if mark is None or moment >= mark)
        if changed:
            tasks = tuple(self._task_answers(rows[key], seen) for _, key in changed)
            yield PullPage(tasks, changed[-1][0])

    def list_tasks(self) -> Sequence[ListedTask]:
        rows = {row["key"]: row for sheet in self._sheets() for row in sheet.rows}
        return [_task(row) for row in rows.values()]

    def withdraw(self, task_ids: Sequence[str]) -> frozenset[str]:
        asked = frozenset(task_ids)
        sheets = self._sheets()
        answered = {row["key"] for sheet in sheets for row in sheet.rows if row["label"]}
        free = asked - answered
        for sheet in sheets:
            kept = [row for row in sheet.rows if row["key"] not in free]
            if not kept:
                sheet.path.unlink()
            elif len(kept) < len(sheet.rows):
                write_sheet(sheet.path, sheet.header, kept)
        return asked - {task.id for task in self.list_tasks()}

    def _sheets(self) -> list[Sheet]:
        return [read_sheet(path) for path in list_sheets(self._folder)]

    def _next_path(self) -> Path:
        # People rename sheets as they like; only names of this very form hold a number of ours.
        ours = (re.fullmatch(r"batch-([0-9]{4,})", path.stem) for path in list_sheets(self._folder))
        last = max((int(found[1]) for found in ours if found), default=0)
        return self._folder / f"batch-{last + 1:04d}.csv"

    def _header(self) -> list[str]:
        # What a person fills in comes first, and a full column last: Excel leaves empty cells at a line's end away.
        header = [f"label (class or {self.skip_word})", "annotator (your name)", "file"]
        return header + (["predicted"] if self._preannotate else []) + ["key", "copy", "sha256"]

    def _question(self, task: OutgoingTask, copy: int) -> dict[str, str]:
        return {
            "file": task.image.path,
            "predicted": task.predicted or "",
            "key": task.key,
            "copy": str(copy),
            "sha256": task.image.sha256,
        }

    def _task_answers(self, rows: Sequence[tuple[str, Mapping[str, str]]], seen: _Seen) -> TaskAnswers:
        answers = []
        for external_id, row in sorted(rows, key=lambda item: item[0]):
            if row["label"]:
                skipped = row["label"].lower() == self.skip_word
                answers.append(
                    Answer(
                        external_id=external_id,
                        annotator=row["annotator"] or "sheet",
                        outcome=Outcome.SKIP if skipped else Outcome.LABEL,
                        value=None if skipped else row["label"],
                        updated_at=dt.datetime.fromisoformat(seen[external_id][2]),
                    )
                )
        return TaskAnswers(_task(rows[0][1]), tuple(answers))

    def _remember(self, sheets: Sequence[Sheet]) -> _Seen:
        """Note which cells differ from what they were, with the time of their sheet."""
        old = self._memory()
        latest = max((moment for _, _, moment in old.values()), default="")
        seen: _Seen = {}
        for sheet in sheets:
            stamp = dt.datetime.fromtimestamp(sheet.mtime_ns // 1000 / 1e6, dt.UTC).isoformat(timespec="microseconds")
            # A sheet restored from a backup is older than what was pulled since; its change must still be seen.
            moment = max(stamp, latest)
            for row in sheet.rows:
                external_id = _external_id(row)
                if external_id in seen:
                    raise LabelingError(
                        f"{sheet.path}: the question {row['key']!r} (copy {row.get('copy') or '1'}) is there twice.",
                        "Remove one of the two rows.",
                    )
                before = old.get(external_id)
                same = before is not None and before[:2] == (row["label"], row["annotator"])
                seen[external_id] = before if before and same else (row["label"], row["annotator"], moment)
        if seen != old:
            write_json(self._folder / _MEMORY, {name: list(cell) for name, cell in seen.items()})
        return seen

    def _pushes(self) -> dict[str, str]:
        try:
            found = json.loads((self._folder / _PUSHES).read_text(encoding="utf-8"))
            return {str(workspace): str(push_id) for workspace, push_id in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _memory(self) -> _Seen:
        try:
            found = json.loads((self._folder / _MEMORY).read_text(encoding="utf-8"))
            seen = {str(name): (str(label), str(who), str(when)) for name, (label, who, when) in found.items()}
            for _, _, when in seen.values():
                dt.datetime.fromisoformat(when)
            return seen
        except (OSError, ValueError, AttributeError, TypeError):
            return {}


def _task(row: Mapping[str, str]) -> ListedTask:
    return ListedTask(row["key"], row["key"], row["sha256"].lower())


def _external_id(row: Mapping[str, str]) -> str:
    return f"{row['key']}#{row.get('copy') or '1'}"
