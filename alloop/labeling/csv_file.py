"""Annotator for people with a spreadsheet program: each push writes a sheet, each pull reads all sheets."""

import dataclasses
import datetime as dt
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from alloop.errors import LabelingError, ServerUnavailable
from alloop.files import from_folder, make_output_folder, write_bytes, write_json
from alloop.labeling.annotator import Annotator
from alloop.labeling.backend import Backend, BackendSetup
from alloop.labeling.label_config import TASKS
from alloop.labeling.pictures import Pictures
from alloop.labeling.settings import Settings
from alloop.labeling.sheets import Sheet, list_sheets, read_sheet, write_sheet
from alloop.labeling.wording import Wording
from alloop.records import Answer, ImageRef, ListedTask, Outcome, OutgoingTask, PullPage, TaskAnswers

_PROJECT = "sheets"
_MEMORY = ".seen.json"
_PUSHES = ".pushes.json"
_LAST_SHEET = ".last-sheet.json"
_NEVER = "1970-01-01T00:00:00.000000+00:00"
_PICTURES = "pictures"

logger = logging.getLogger("alloop")


@dataclasses.dataclass(frozen=True, slots=True)
class _Cell:
    """Row as last seen; `moment` is the modification time of the sheet when the row last changed."""

    label: str
    annotator: str
    moment: str
    sheet: str
    sha256: str
    file: str


_Seen = dict[str, _Cell]  # by the row's external id


class CsvAnnotator:
    """The `Annotator` over batch sheets.

    A task's id is its key, so rows can be sorted and moved between sheets. An empty label cell means no answer,
    clearing a cell deletes the answer, and deleting a row deletes the task. A missing sheet deletes nothing: somebody
    may be filling it in elsewhere, so its rows count as last seen. The time of an answer is the modification time of
    its sheet. Rows and times are stored in a small file beside the sheets; if that file is lost, all rows count as just
    changed.

    Args:
        folder: Folder of the sheets.
        classes: Class names; they decide which word means "skip".
        pictures: The images of the pool.
        preannotate: True to show the model's guess in a column of its own.
        annotations_per_image: Number of rows per image, for different people.
        push_batch: Number of rows per sheet.
        workspace_key: Key of the workspace whose last push is stored; several workspaces may share a folder.
        wording: Wording of the task.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        pictures: Pictures,
        *,
        preannotate: bool = False,
        annotations_per_image: int = 1,
        push_batch: int = 10_000,
        workspace_key: str = "",
        wording: Wording,
    ) -> None:
        self._wording = wording
        self._folder = folder
        self._pictures = pictures
        # If a class is called "skip", people write (skip) to skip an image.
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
                "Set [labeling] backend back to what the workspace began with, or start a new workspace.",
            )
        if project_ref is None:
            # A new project does not wait for sheets of an earlier one, so their rows are dropped.
            self._write_memory(self._present(self._sheets(), self._memory()))
        elif not (self._folder / _MEMORY).exists() and not list_sheets(self._folder):
            raise ServerUnavailable(
                f"There are no sheets in {self._folder}: the folder does not exist or is empty.",
                "Put the folder back, or correct [labeling.csv] folder. If the sheets are lost, `alloop push "
                "--new-project` writes the open questions into new sheets.",
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
            path = self._new_path()
            write_sheet(path, self._header(), rows)
            logger.info("%s: fill in the first two columns, then run `alloop run`.", path)
            self._read()
            yield {task.key: task.key for task in batch}

    def pull(self, mark: str | None) -> Iterator[PullPage]:
        seen = self._read()
        self._warn_of_absent(seen)
        rows: dict[str, _Seen] = {}
        for external_id, cell in seen.items():
            rows.setdefault(_key(external_id), {})[external_id] = cell
        moments = {key: max(cell.moment for cell in cells.values()) for key, cells in rows.items()}
        changed = sorted((moment, key) for key, moment in moments.items() if mark is None or moment >= mark)
        if changed:
            yield PullPage(tuple(self._task_answers(key, rows[key]) for _, key in changed), changed[-1][0])

    def list_tasks(self) -> Sequence[ListedTask]:
        found = {_key(external_id): cell for external_id, cell in self._read().items()}
        return [_task(key, cell) for key, cell in found.items()]

    def show(self, images: Mapping[str, Sequence[ImageRef]]) -> int:
        moved: set[str] = set()
        for sheet in self._sheets():
            rows = [self._shown(row, images.get(row["key"], ())) for row in sheet.rows]
            if rows != list(sheet.rows):
                moved |= {new["key"] for new, old in zip(rows, sheet.rows, strict=True) if new != old}
                write_sheet(sheet.path, sheet.header, rows)
        return len(moved)

    def withdraw(self, task_ids: Sequence[str]) -> frozenset[str]:
        asked = frozenset(task_ids)
        sheets = self._sheets()
        answered = {row["key"] for sheet in sheets for row in sheet.rows if row["label"]}
        free = asked - answered - {_key(name) for name in self._absent(sheets, self._read())}
        # Done before sheets are changed: a sheet removed below would otherwise count as taken away by somebody.
        self._write_memory({name: cell for name, cell in self._memory().items() if _key(name) not in free})
        for sheet in sheets:
            kept = [row for row in sheet.rows if row["key"] not in free]
            if not kept:
                sheet.path.unlink()
            elif len(kept) < len(sheet.rows):
                write_sheet(sheet.path, sheet.header, kept)
        return asked - {task.id for task in self.list_tasks()}

    def _sheets(self) -> list[Sheet]:
        return [read_sheet(path) for path in list_sheets(self._folder)]

    def _new_path(self) -> Path:
        """Return a name that no sheet ever had, so that a sheet that comes back replaces none."""
        # People may rename sheets; only names of exactly this form hold a number that alloop gave.
        names = {path.name for path in list_sheets(self._folder)} | {cell.sheet for cell in self._memory().values()}
        ours = (re.fullmatch(r"batch-([0-9]{4,})\.csv", name) for name in names)
        number = max((int(found[1]) for found in ours if found), default=0)
        number = 1 + max(number, self._last_sheet())
        write_json(self._folder / _LAST_SHEET, number)
        return self._folder / f"batch-{number:04d}.csv"

    def _last_sheet(self) -> int:
        try:
            return int(json.loads((self._folder / _LAST_SHEET).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return 0

    def _header(self) -> list[str]:
        # The column to fill in comes first and a filled column last, because Excel drops empty cells at a line's end.
        header = [f"label ({self._wording.answer} or {self.skip_word})", "annotator (your name)", "file"]
        return header + (["predicted"] if self._preannotate else []) + ["key", "copy", "sha256"]

    def _question(self, task: OutgoingTask, copy: int) -> dict[str, str]:
        return {
            "file": self._picture(task.image),
            "predicted": task.predicted or "",
            "key": task.key,
            "copy": str(copy),
            "sha256": task.image.sha256,
        }

    def _shown(self, row: Mapping[str, str], places: Sequence[ImageRef]) -> Mapping[str, str]:
        """Return the row with its file path replaced if the path leads to none of the image's places."""
        paths = [self._picture(image) for image in places if image.sha256 == row["sha256"].lower()]
        return {**row, "file": paths[0]} if paths and "file" in row and row["file"] not in paths else row

    def _picture(self, image: ImageRef) -> str:
        """Return the path of the file to show: a PNG beside the sheets if the image has more than 8 bits a channel."""
        if image.depth is None:
            return image.path
        place = self._folder.absolute() / _PICTURES / f"{image.key}.png"
        if not place.exists():
            make_output_folder(place.parent)
            write_bytes(place, self._pictures.as_png(image))
        return str(place)

    def _task_answers(self, key: str, cells: _Seen) -> TaskAnswers:
        answers = []
        for external_id, cell in sorted(cells.items()):
            if cell.label:
                skipped = cell.label.lower() == self.skip_word
                answers.append(
                    Answer(
                        external_id=external_id,
                        annotator=cell.annotator or "sheet",
                        outcome=Outcome.SKIP if skipped else Outcome.LABEL,
                        value=None if skipped else cell.label,
                        updated_at=dt.datetime.fromisoformat(cell.moment),
                    )
                )
        first = next(iter(cells.values()))
        # A PNG that alloop made has other bytes than its image, so it cannot be compared with the image's hash.
        is_made = Path(first.file).parent.name == _PICTURES
        return TaskAnswers(_task(key, first), tuple(answers), None if is_made else first.file or None)

    def _read(self) -> _Seen:
        """Return every row as it is now, and rows of missing sheets as they were last seen. Store changes."""
        sheets, old = self._sheets(), self._memory()
        seen = {**self._absent(sheets, old), **self._present(sheets, old)}
        if seen != old:
            self._write_memory(seen)
        return seen

    def _present(self, sheets: Sequence[Sheet], old: _Seen) -> _Seen:
        """Return the rows of the sheets that are there. Changed rows get the modification time of their sheet."""
        latest = max((cell.moment for cell in old.values()), default="")
        seen: _Seen = {}
        for sheet in sheets:
            stamp = dt.datetime.fromtimestamp(sheet.mtime_ns // 1000 / 1e6, dt.UTC).isoformat(timespec="microseconds")
            # A sheet restored from a backup is older than what was pulled since; its change must still be seen.
            moment = max(stamp, latest)
            for row in sheet.rows:
                external_id = _external_id(row)
                if external_id in seen:
                    raise LabelingError(
                        f"{sheet.path}: the question {row['key']!r} (copy {row.get('copy') or '1'}) appears twice.",
                        "Remove one of the two rows.",
                    )
                before = old.get(external_id)
                same = before is not None and (before.label, before.annotator) == (row["label"], row["annotator"])
                since = before.moment if before is not None and same else moment
                if before is None and not row["label"]:
                    since = _NEVER  # the row has no answer yet
                more = (sheet.path.name, row["sha256"].lower(), row.get("file", ""))
                seen[external_id] = _Cell(row["label"], row["annotator"], since, *more)
        return seen

    def _pushes(self) -> dict[str, str]:
        try:
            found = json.loads((self._folder / _PUSHES).read_text(encoding="utf-8"))
            return {str(workspace): str(push_id) for workspace, push_id in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _absent(self, sheets: Sequence[Sheet], old: _Seen) -> _Seen:
        """Return the rows of missing sheets: those with no file of their name and none of their rows elsewhere."""
        here = {_external_id(row) for sheet in sheets for row in sheet.rows}
        there = {sheet.path.name for sheet in sheets} | {cell.sheet for name, cell in old.items() if name in here}
        return {name: cell for name, cell in old.items() if cell.sheet not in there}

    def _warn_of_absent(self, seen: _Seen) -> None:
        away = Counter(cell.sheet for cell in self._absent(self._sheets(), seen).values() if not cell.label)
        for name, n in away.items():
            logger.warning(
                "%s is not in %s. Its %d open questions stay open until it is back. If it is lost, `alloop push "
                "--new-project` asks all open questions again in new sheets.",
                name,
                self._folder,
                n,
            )

    def _write_memory(self, seen: _Seen) -> None:
        write_json(self._folder / _MEMORY, {name: dataclasses.astuple(cell) for name, cell in seen.items()})

    def _memory(self) -> _Seen:
        try:
            found = json.loads((self._folder / _MEMORY).read_text(encoding="utf-8"))
            seen = {str(name): _Cell(*map(str, values)) for name, values in found.items()}
            for cell in seen.values():
                dt.datetime.fromisoformat(cell.moment)
            return seen
        except (OSError, ValueError, AttributeError, TypeError):
            return {}


def _task(key: str, cell: _Cell) -> ListedTask:
    return ListedTask(key, key, cell.sha256)


def _key(external_id: str) -> str:
    return external_id.rpartition("#")[0]


def _external_id(row: Mapping[str, str]) -> str:
    return f"{row['key']}#{row.get('copy') or '1'}"


def _build(setup: BackendSetup) -> Annotator:
    labeling = setup.settings.labeling
    return CsvAnnotator(
        from_folder(setup.folder, labeling.csv.folder),
        setup.settings.project.classes,
        setup.pictures,
        preannotate=labeling.preannotate,
        annotations_per_image=labeling.annotations_per_image,
        workspace_key=setup.workspace_key,
        wording=TASKS[setup.settings.project.task],
    )


def _folder(settings: Settings) -> str:
    return str(settings.labeling.csv.folder)


BACKEND = Backend(
    _build,
    folder=_folder,
    unheeded={
        ("labeling", "annotations_per_image"): (
            "sheets that were written already keep their rows. If more people have to answer, copy the row and raise "
            "its number in the column 'copy', or end the round with `alloop round close`."
        ),
        ("labeling.csv", "folder"): "sheets are read from the new folder only; move the existing sheets there.",
    },
)
