"""Annotator for simulations: answers come from a CSV with true labels or with answers of real people."""

import datetime as dt
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alloop.errors import ConfigError, LabelError, LabelingError
from alloop.files import explain_os_error, from_folder, sha256_of
from alloop.labeling.annotator import Annotator
from alloop.labeling.backend import Backend, BackendSetup
from alloop.labeling.label_config import TASKS
from alloop.labeling.wording import Wording
from alloop.names import as_answer, as_class, composed, file_spellings
from alloop.records import Answer, ImageRef, ListedTask, Outcome, OutgoingTask, PullPage, TaskAnswers
from alloop.seeds import derive_seed
from alloop.spreadsheet import read_table

_PROJECT = "oracle"
_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


Said = tuple[str | None, ...]  # about one image: the truth, or what each person answered; None: was not asked


class Truth:
    """Content of the CSV: a label, or an answer of each person, by content hash, path or file name.

    Attributes:
        people: Columns with answers of real people; empty if the CSV holds true labels.
    """

    def __init__(self, file: Path, people: tuple[str, ...] = ()) -> None:
        self.file = file
        self.people = people
        self._folder = Path(os.path.abspath(file.parent))  # noqa: PTH100 - Path.absolute keeps `..`
        self._by_sha256: dict[str, Said] = {}
        self._by_name: dict[str, Said | None] = {}  # None: two rows say different things
        self._files: dict[str, str] = {}  # bare name → full path of the row that has it
        self._by_letters: dict[str, Said | None] = {}  # the same with `/` for Windows' `\`, and letters composed

    def add(self, sha256: str, name: str, said: Said) -> None:
        """Add a row."""
        if sha256:
            self._by_sha256[sha256] = said
        if name:
            self._by_name[os.path.abspath(self._folder / name)] = said  # noqa: PTH100
            if "/" in name:
                self._by_name[name] = said  # a location that is not a path
            _note(self._by_name, Path(name).name, said)
            self._files[composed(Path(name).name)] = os.path.abspath(self._folder / name)  # noqa: PTH100
            plain = composed(file_spellings(name)[-1])
            self._by_letters[composed(os.path.abspath(self._folder / plain))] = said  # noqa: PTH100
            _note(self._by_letters, Path(plain).name, said)

    def label(self, image: ImageRef) -> str:
        """Return the true label.

        Raises:
            LabelError: As `said`.
        """
        return str(self.said(image)[0])

    def said(self, image: ImageRef) -> Said:
        """Return the answers of `people`, in their order; without people, the true label alone.

        Raises:
            LabelError: The CSV does not hold the image, or holds its file name twice.
        """
        if image.sha256 in self._by_sha256:
            return self._by_sha256[image.sha256]
        path = Path(os.path.abspath(image.path))  # noqa: PTH100 - Path.absolute keeps `..`
        names = (image.path, str(path), str(path.resolve()), path.name)
        for known, spelled in ((self._by_name, names), (self._by_letters, tuple(map(composed, names)))):
            name = next((name for name in spelled if name in known), None)
            if name is not None and (os.sep in name or not self._is_of_another(image)):
                return self._only(known[name], path.name)
        raise LabelError(f"{self.file} has no label for {image.path}.", "Add a row for it.")

    def _is_of_another(self, image: ImageRef) -> bool:
        """Return whether the row with this file name means another file: one that exists and has other bytes."""
        file = Path(self._files[composed(Path(image.path).name)])
        return file.is_file() and sha256_of(file) != image.sha256

    def _only(self, said: Said | None, name: str) -> Said:
        if said is None:
            raise LabelError(
                f"{self.file} names {name} more than once, with different labels.",
                "Write paths relative to its own folder, or sha256, instead of bare names.",
            )
        return said


def read_truth(file: Path, people: Sequence[str] = (), classes: Collection[str] = ()) -> Truth:
    """Read `file,label` or `sha256,label`; paths are absolute, relative to the CSV's folder, or unique file names.

    Args:
        file: The CSV.
        people: Columns to read in place of `label`: one for each person. An empty cell, -1 or NaN means that the person
            was not asked.
        classes: Class names. An answer that looks like a class is spelled like it.

    Raises:
        LabelError: A column is missing, a row has no label, or nobody answered.
    """
    truth = Truth(file, tuple(people))
    columns = tuple(people) or ("label",)
    for row in read_table(file, LabelError, columns, one_of=("file", "sha256")).rows:
        said = tuple(as_answer(row.get(column), classes) if people else row.get(column) for column in columns)
        if not any(said):
            what = "nobody answered" if people else "the label is empty"
            raise LabelError(f"{file}, line {row.line}: {what}.", "Add the answer or remove the row.")
        truth.add(row.get("sha256").lower(), row.file, said if people else (as_class(str(said[0]), classes),))
    return truth


def _note(known: dict[str, Said | None], name: str, said: Said) -> None:
    known[name] = said if known.get(name, said) == said else None


class SimulatedAnnotator:
    """The `Annotator` that answers at once, with true labels or answers of real people.

    Args:
        truth: Labels of all images that may be asked about, or people's answers.
        classes: Classes of wrong answers.
        state: JSON-lines file that stores the tasks, one line each; changed only by a push or a withdrawal.
        noise: Probability in [0, 1] that an answer is another class, drawn uniformly. A person who is asked about the
            same image again gives the same answer. Answers of real people are not changed.
        annotators: Number of people who answer each task. Of real people, a part is drawn for each image, in a random
            order.
        seed: Seed of the mistakes and of the draw of people.
        push_batch: Number of tasks between two yields of `push`.
        wording: Wording of the task.
    """

    def __init__(
        self,
        truth: Truth,
        classes: Sequence[str],
        state: Path,
        *,
        noise: float = 0.0,
        annotators: int = 1,
        seed: int = 0,
        push_batch: int = 500,
        wording: Wording,
    ) -> None:
        self._wording = wording
        self._truth = truth
        self._classes = tuple(classes)
        self._state = state
        self._noise = noise
        self._annotators = annotators
        self._seed = seed
        self._push_batch = push_batch

    @property
    def source(self) -> str:
        return _PROJECT

    def open_project(self, project_ref: str | None, identity: str | None = None) -> str:
        if project_ref not in {None, _PROJECT}:
            raise LabelingError(
                f"This workspace's tasks are in {project_ref!r}, not with the oracle.",
                "Set [labeling] backend back to what the workspace began with, or start a new workspace.",
            )
        self._load()
        return _PROJECT

    @property
    def identity(self) -> str:
        return ""

    def last_push(self) -> str | None:
        """Return None, because no other workspace pushes to the oracle's file."""
        return None

    def set_last_push(self, push_id: str) -> None:
        pass

    def reconcile(self, images: Mapping[str, str]) -> Mapping[str, str]:
        known = {task.key: task for task in self.list_tasks()}
        return {key: known[key].id for key, sha256 in images.items() if key in known and known[key].asks_about(sha256)}

    def push(self, tasks: Sequence[OutgoingTask]) -> Iterator[Mapping[str, str]]:
        answers = [self.answers(task.image) for task in tasks]  # all of them, before anything is written
        number = self._last_number()
        for start in range(0, len(tasks), self._push_batch):
            entries: list[dict[str, Any]] = []
            for task, given in zip(tasks[start : start + self._push_batch], answers[start:], strict=False):
                number += 1
                entry: dict[str, Any] = {"task": str(number), "key": task.key, "sha256": task.image.sha256}
                entry["answers"] = [said for _, said in given]
                if self._truth.people:
                    entry["people"] = [person for person, _ in given]
                entries.append(entry)
            self._append(entries)
            yield {entry["key"]: entry["task"] for entry in entries}

    def pull(self, mark: str | None) -> Iterator[PullPage]:
        done = int(mark or 0)
        fresh = [entry for entry in self._load().values() if int(entry["task"]) > done]
        if fresh:
            yield PullPage(tuple(map(self._task_answers, fresh)), fresh[-1]["task"])

    def list_tasks(self) -> Sequence[ListedTask]:
        return [_task(entry) for entry in self._load().values()]

    def show(self, images: Mapping[str, Sequence[ImageRef]]) -> int:
        """Return 0 and change nothing, because the oracle does not look at images."""
        return 0

    def withdraw(self, task_ids: Sequence[str]) -> frozenset[str]:
        """Withdraw nothing, because every task was answered at once. Return the ids of tasks that do not exist."""
        return frozenset(task_ids) - frozenset(self._load())

    def answers(self, image: ImageRef) -> list[tuple[str, str]]:
        """Return (person, answer) pairs for an image, in order; the same at every call.

        Raises:
            LabelError: The CSV does not hold the image, or too few answers about it.
        """
        said, people = self._truth.said(image), self._truth.people
        if not people:
            return [(_name(n), self._answer(image.sha256, str(said[0]), n)) for n in range(self._annotators)]
        # Every image has its own order, or the same person would settle all ties.
        draw = np.random.default_rng(derive_seed(self._seed, "oracle", image.sha256))
        order: list[int] = draw.permutation(len(people)).tolist()
        given = [(people[person], answer) for person in order if (answer := said[person]) is not None]
        if len(given) < self._annotators:
            raise LabelError(
                f"{self._truth.file} has {len(given)} answers about {image.path}; {self._annotators} are asked for.",
                "Lower [labeling] annotations_per_image, or remove the image from the pool's folder.",
            )
        return given[: self._annotators]

    def _answer(self, sha256: str, label: str, person: int) -> str:
        # The draw depends only on image and person, so order, batches and restarts do not change an answer.
        draw = np.random.default_rng(derive_seed(self._seed, "oracle", sha256, person))
        wrong = self._wording.mistake(label, self._classes, draw) if draw.random() < self._noise else None
        return label if wrong is None else wrong

    def _task_answers(self, entry: Mapping[str, Any]) -> TaskAnswers:
        moment = _EPOCH + dt.timedelta(seconds=int(entry["task"]))
        people = entry.get("people") or [_name(person) for person in range(len(entry["answers"]))]
        answers = tuple(
            # Answers have different times. At equal times, the alphabet would settle ties.
            Answer(f"{entry['task']}-{place}", person, Outcome.LABEL, value, moment + dt.timedelta(milliseconds=place))
            for place, (person, value) in enumerate(zip(people, entry["answers"], strict=True))
        )
        return TaskAnswers(_task(entry), answers)

    def _last_number(self) -> int:
        return max((int(task_id) for task_id in self._load()), default=0)

    def _load(self) -> dict[str, dict[str, Any]]:
        """Read all stored tasks, by task id in order. An incomplete last line is ignored."""
        try:
            lines = self._state.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise explain_os_error(error, self._state) from error
        entries: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(lines[:-1], start=1):  # text after the last line end is incomplete
            try:
                entry = json.loads(line)
                if not re.fullmatch("[0-9]+", entry["task"]) or {"key", "sha256", "answers"} - entry.keys():
                    raise ValueError(entry)
                entries[entry["task"]] = entry
            except (ValueError, KeyError, TypeError, AttributeError):
                raise LabelingError(
                    f"{self._state}, line {number} was not written by the oracle.", "Restore the file from a backup."
                ) from None
        return entries

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        try:
            self._state.parent.mkdir(parents=True, exist_ok=True)
            with self._state.open("a+b") as file:
                _cut_unfinished_line(file)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise explain_os_error(error, self._state) from error


def _task(entry: Mapping[str, Any]) -> ListedTask:
    return ListedTask(entry["task"], entry["key"], entry["sha256"])


def _name(person: int) -> str:
    return f"oracle-{person + 1}"


def _cut_unfinished_line(file: Any) -> None:
    """Remove an incomplete last line, so that the next line starts correctly."""
    file.seek(0)
    whole = file.read().rpartition(b"\n")
    if whole[2]:
        file.truncate(len(whole[0]) + len(whole[1]))
    file.seek(0, os.SEEK_END)


def _build(setup: BackendSetup) -> Annotator:
    labeling, project = setup.settings.labeling, setup.settings.project
    own = labeling.oracle
    if own.file is None:
        raise ConfigError(
            '[labeling] backend is "oracle", but [labeling.oracle] file is not set.', "Name a CSV with file,label."
        )
    return SimulatedAnnotator(
        read_truth(from_folder(setup.folder, own.file), own.columns, project.classes),
        project.classes,
        setup.folder / "oracle.jsonl",
        noise=own.noise,
        # Only as many real people are asked as must answer.
        annotators=labeling.annotations_per_image if own.columns else own.annotators,
        seed=project.seed,
        wording=TASKS[project.task],
    )


BACKEND = Backend(_build)
