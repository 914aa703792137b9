"""Behavior of every labeling back end that the loop relies on: a real Label Studio, oracles, sheets, and a toy."""

import csv
import dataclasses
import datetime as dt
import hashlib
import itertools
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image
from toys.notebook import Notebook

from alloop.errors import LabelingError
from alloop.labeling.annotator import Annotator
from alloop.labeling.csv_file import CsvAnnotator
from alloop.labeling.simulated import SimulatedAnnotator, read_truth
from alloop.labeling.single_choice import SingleChoice
from alloop.pool.picture import PICTURES
from alloop.records import Answer, ImageRef, ListedTask, Outcome, OutgoingTask, PullPage, TaskAnswers

TRUE_LABELS = ["cat", "dog", "cat", "zebra", "dog"]  # zebra is no class of ours


@dataclasses.dataclass
class World:
    """A back end and the people behind it. `new()` is alloop started again: nothing but what is stored survives."""

    images: list[ImageRef]
    can: frozenset[str] = frozenset({"edit", "skip", "empty"})

    def new(self) -> Annotator:
        raise NotImplementedError

    def answer(self, task_id: str, value: str | None) -> None:
        """Somebody answers, changes the answer, or (None) skips."""
        raise NotImplementedError

    def delete(self, task_id: str) -> None:
        raise NotImplementedError


@dataclasses.dataclass
class LabelStudioWorld(World):
    server: object = None
    workspace_key: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    annotations: dict[str, int] = dataclasses.field(default_factory=dict)

    def new(self):
        return self.server.annotator(workspace_key=self.workspace_key, push_batch=2)

    def answer(self, task_id, value):
        choices = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [value]}}]
        body = {"result": choices if value else [], "was_cancelled": value is None, "lead_time": 2.5}
        number = task_id.partition(":")[0]
        if task_id in self.annotations:
            reply = self.server.api("PATCH", f"/api/annotations/{self.annotations[task_id]}/", json=body)
        else:
            reply = self.server.api("POST", f"/api/tasks/{number}/annotations/", json=body)
        assert reply.status_code in {200, 201}
        self.annotations[task_id] = reply.json()["id"]

    def delete(self, task_id):
        assert self.server.api("DELETE", f"/api/annotations/{self.annotations[task_id]}/").status_code == 204


@dataclasses.dataclass
class SheetsWorld(World):
    folder: Path = Path()
    clock: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1_700_000_000))

    def new(self):
        return CsvAnnotator(self.folder, ("cat", "dog"), PICTURES, wording=SingleChoice(), push_batch=2)

    def answer(self, task_id, value):
        self._fill(task_id, value or "skip")

    def delete(self, task_id):
        self._fill(task_id, "")

    def _fill(self, task_id, text):
        for path in self.folder.glob("*.csv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                old = file.read()
            header, *rows = csv.reader(old.splitlines(), delimiter=";" if ";" in old else ",")
            for row in rows:
                if task_id in row:
                    row[:2] = text, "ann"
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, delimiter=";").writerows([header, *rows])
            moment = next(self.clock)
            os.utime(path, (moment, moment))


@dataclasses.dataclass
class OracleWorld(World):
    folder: Path = Path()
    people: tuple[str, ...] = ()

    def new(self):
        truth = read_truth(self.folder / "truth.csv", self.people)
        return SimulatedAnnotator(
            truth, ("cat", "dog"), self.folder / "oracle.jsonl", wording=SingleChoice(), push_batch=2
        )

    def answer(self, task_id, value):
        pass  # it has answered already


@dataclasses.dataclass
class NotebookWorld(World):
    folder: Path = Path()

    def new(self):
        return Notebook(self.folder / "notebook.json")

    def answer(self, task_id, value):
        outcome = {None: Outcome.SKIP, "": Outcome.EMPTY}.get(value, Outcome.LABEL)
        self.new().answer(task_id, outcome, value or None)

    def delete(self, task_id):
        self.new().answer(task_id, None)


def make_images(folder: Path) -> list[ImageRef]:
    images = []
    for number in range(len(TRUE_LABELS)):
        path = folder / f"{number}.png"
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(path)
        images.append(ImageRef(number + 1, hashlib.sha256(path.read_bytes()).hexdigest(), str(path)))
    return images


@pytest.fixture(params=[pytest.param("label-studio", marks=pytest.mark.label_studio), "oracle", "people", "csv", "toy"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    if request.param == "label-studio":
        server = request.getfixturevalue("label_studio")
        return LabelStudioWorld(make_images(server.images), server=server)
    images = make_images(tmp_path)
    if request.param == "csv":
        return SheetsWorld(images, frozenset({"edit", "skip"}), folder=tmp_path / "sheets")
    if request.param == "toy":
        return NotebookWorld(images, folder=tmp_path)
    rows = "".join(
        f"{image.sha256},{label},{label},{label}\n" for image, label in zip(images, TRUE_LABELS, strict=True)
    )
    (tmp_path / "truth.csv").write_text("sha256,label,ann,bob\n" + rows)
    people = ("ann", "bob") if request.param == "people" else ()
    return OracleWorld(images, frozenset(), folder=tmp_path, people=people)


def make_tasks(world: World, prefix: str = "q") -> list[OutgoingTask]:
    return [OutgoingTask(f"{prefix}{number}", image) for number, image in enumerate(world.images)]


def opened(world: World) -> Annotator:
    annotator = world.new()
    annotator.open_project(None)
    return annotator


def push_all(annotator: Annotator, tasks: Sequence[OutgoingTask]) -> dict[str, str]:
    return {key: task_id for batch in annotator.push(tasks) for key, task_id in batch.items()}


def hashes(tasks: Sequence[OutgoingTask]) -> dict[str, str]:
    return {task.key: task.image.sha256 for task in tasks}


def ids_of(annotator: Annotator) -> set[str]:
    return {task.id for task in annotator.list_tasks()}


def by_key(pages: Iterator[PullPage]) -> dict[str, TaskAnswers]:
    return {task.task.key: task for page in pages for task in page.tasks}


def only_answer(annotator: Annotator, key: str) -> Answer:
    (answer,) = by_key(annotator.pull(None))[key].answers
    return answer


def test_opening_again_finds_the_same_project(world: World):
    first = world.new().open_project(None)

    assert world.new().open_project(None) == first  # an interrupted creation is found
    assert world.new().open_project(first) == first


def test_a_project_of_another_back_end_is_refused(world: World):
    with pytest.raises(LabelingError):
        world.new().open_project("another back end")


def test_every_task_is_made_once_in_batches_and_listed(world: World):
    annotator = opened(world)

    batches = list(annotator.push(make_tasks(world)))

    assert [sorted(batch) for batch in batches] == [["q0", "q1"], ["q2", "q3"], ["q4"]]
    ids = [task_id for batch in batches for task_id in batch.values()]
    assert ids_of(annotator) == set(ids)
    assert len(set(ids)) == 5


def test_tasks_that_exist_are_found_by_key_and_others_are_not(world: World):
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world))

    assert world.new().open_project(None)
    again = opened(world)
    wanted = [make_tasks(world)[number] for number in (1, 3)]
    assert dict(again.reconcile({**hashes(wanted), "nobody": wanted[0].image.sha256})) == {
        "q1": ids["q1"],
        "q3": ids["q3"],
    }
    assert dict(again.reconcile({})) == {}


def test_a_task_of_the_same_key_about_another_image_is_not_found(world: World):
    """A restored database may give a key to another image than the one it was pushed for."""
    annotator = opened(world)
    push_all(annotator, make_tasks(world)[:1])

    assert dict(annotator.reconcile({"q0": world.images[1].sha256})) == {}


def test_tasks_are_listed_and_answered_with_the_hash_of_their_image(world: World):
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world)[:2])
    world.answer(ids["q1"], "dog")

    wanted = [ListedTask(ids[f"q{number}"], f"q{number}", world.images[number].sha256) for number in (0, 1)]
    assert sorted(annotator.list_tasks(), key=lambda task: task.key) == wanted
    assert by_key(annotator.pull(None))["q1"].task == wanted[1]


def test_a_task_follows_its_image_and_keeps_its_answer(world: World):
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world)[:2])
    world.answer(ids["q1"], "dog")
    old = [Path(image.path) for image in world.images[:2]]
    new = [path.with_name("moved") / path.name for path in old]
    new[0].parent.mkdir(exist_ok=True)
    for source, target in zip(old, new, strict=True):
        source.rename(target)
    moved = {ids[f"q{number}"]: [dataclasses.replace(world.images[number], path=str(new[number]))] for number in (0, 1)}

    changed = [annotator.show(moved), opened(world).show(moved)]

    assert changed == ([2, 0] if world.can else [0, 0])
    task = by_key(annotator.pull(None))["q1"]
    assert task.answers[0].value == "dog"
    if world.can:
        assert task.file is not None
        assert Path(task.file).resolve() == new[1].resolve()


def test_a_task_that_shows_its_image_in_any_of_its_places_is_left_alone(world: World):
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world)[:1])
    copy = dataclasses.replace(world.images[0], path=world.images[0].path + ".copy.png")

    assert annotator.show({ids["q0"]: [copy, world.images[0]]}) == 0


def test_a_task_about_another_image_is_never_given_an_address(world: World):
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world)[:1])

    assert annotator.show({ids["q0"]: [world.images[1]]}) == 0


def test_the_last_push_is_remembered_for_the_next_alloop(world: World):
    annotator = opened(world)
    assert annotator.last_push() is None
    annotator.set_last_push("0011223344556677")
    annotator.set_last_push("8899aabbccddeeff")

    # An oracle has nobody beside it who could push.
    assert opened(world).last_push() == ("8899aabbccddeeff" if world.can else None)


def test_a_push_killed_between_batches_continues_without_copies(world: World):
    tasks = make_tasks(world)
    first = next(iter(opened(world).push(tasks)))  # and here the process ends

    again = opened(world)
    known = again.reconcile(hashes(tasks))
    rest = push_all(again, [task for task in tasks if task.key not in known])

    assert dict(first) == dict(known)
    assert set(known) | set(rest) == {task.key for task in tasks}
    assert ids_of(again) == set(known.values()) | set(rest.values())


def test_an_answer_comes_back_with_who_and_when(world: World):
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world))
    world.answer(ids["q1"], "dog")

    answer = only_answer(annotator, "q1")

    assert (answer.outcome, answer.value) == (Outcome.LABEL, "dog")
    assert answer.annotator
    assert answer.updated_at.utcoffset() == dt.timedelta(0)


def test_an_unknown_label_is_kept_as_it_was_given(world: World):
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world))
    world.answer(ids["q3"], "zebra")

    assert only_answer(annotator, "q3").value == "zebra"


def test_an_edited_answer_keeps_its_id_and_changes_its_value(world: World):
    if "edit" not in world.can:
        return  # the oracle never changes its mind
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world))
    world.answer(ids["q0"], "cat")
    before = only_answer(annotator, "q0")

    world.answer(ids["q0"], "dog")

    after = only_answer(annotator, "q0")
    assert (after.external_id, after.value) == (before.external_id, "dog")
    assert after.updated_at > before.updated_at


def test_a_deleted_answer_is_listed_no_more_but_its_task_is(world: World):
    if "edit" not in world.can:
        return
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world))
    world.answer(ids["q0"], "cat")
    mark = list(annotator.pull(None))[-1].mark

    world.delete(ids["q0"])

    assert by_key(annotator.pull(mark))["q0"].answers == ()


def test_a_skip_is_told_from_a_label(world: World):
    if "skip" not in world.can:
        return
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world))
    world.answer(ids["q2"], None)

    answer = only_answer(annotator, "q2")

    assert (answer.outcome, answer.value) == (Outcome.SKIP, None)


def test_an_empty_submission_is_neither_label_nor_skip(world: World):
    if "empty" not in world.can:
        return
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world))
    world.answer(ids["q2"], "")  # submitted, nothing chosen

    answer = only_answer(annotator, "q2")

    assert (answer.outcome, answer.value) == (Outcome.EMPTY, None)


def test_a_later_pull_brings_what_changed_and_repeats_harmlessly(world: World):
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world))
    world.answer(ids["q0"], "cat")
    mark = list(annotator.pull(None))[-1].mark
    later = push_all(annotator, make_tasks(world, "r"))
    world.answer(later["r1"], "dog")

    pages = list(world_pull(world, mark))

    changed = by_key(iter(pages))
    assert changed["r1"].answers[0].value == "dog"
    assert changed["r1"].task.id == later["r1"]
    assert pages[-1].mark >= mark or world.can == frozenset()
    assert by_key(world_pull(world, mark)) == changed


def world_pull(world: World, mark: str | None) -> Iterator[PullPage]:
    return opened(world).pull(mark)


def test_only_unanswered_tasks_are_taken_back(world: World):
    annotator = opened(world)
    ids = push_all(annotator, make_tasks(world))
    world.answer(ids["q0"], "cat")

    gone = annotator.withdraw(list(ids.values()))

    assert ids["q0"] not in gone
    assert ids_of(annotator) == set(ids.values()) - gone
    assert len(gone) == (0 if world.can == frozenset() else 4)
    assert dict(annotator.reconcile(hashes(make_tasks(world)))) == {
        key: ids[key] for key in ids if ids[key] not in gone
    }


def test_ids_of_tasks_that_were_taken_back_never_come_again(world: World):
    annotator = opened(world)
    first = push_all(annotator, make_tasks(world))
    annotator.withdraw(list(first.values()))

    second = push_all(annotator, make_tasks(world, "r"))

    assert not set(first.values()) & set(second.values())
