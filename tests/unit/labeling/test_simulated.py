import hashlib
from collections import Counter
from pathlib import Path

import pytest

from alloop.consensus import ClassificationJudge
from alloop.errors import LabelError, LabelingError
from alloop.labeling.simulated import SimulatedAnnotator, read_truth
from alloop.labeling.single_choice import SingleChoice
from alloop.records import ImageRef, OutgoingTask

CLASSES = ("cat", "dog", "cow")


def image(number: int, path: str = "/pool/x.png") -> ImageRef:
    return ImageRef(number, hashlib.sha256(str(number).encode()).hexdigest(), path)


def oracle(tmp_path: Path, n: int = 300, **options: object) -> SimulatedAnnotator:
    rows = "".join(f"{image(number).sha256},cat\n" for number in range(n))
    (tmp_path / "truth.csv").write_text("sha256,label\n" + rows)
    return SimulatedAnnotator(
        read_truth(tmp_path / "truth.csv"), CLASSES, tmp_path / "state.jsonl", wording=SingleChoice(), **options
    )


def ask(annotator: SimulatedAnnotator, numbers: list[int], prefix: str = "q") -> None:
    list(annotator.push([OutgoingTask(f"{prefix}{number}", image(number)) for number in numbers]))


def values(annotator: SimulatedAnnotator) -> dict[str, list[str | None]]:
    return {task.task.key: [a.value for a in task.answers] for page in annotator.pull(None) for task in page.tasks}


def test_without_noise_everybody_tells_the_truth(tmp_path: Path):
    annotator = oracle(tmp_path, annotators=3)
    ask(annotator, [0, 1])

    assert values(annotator) == {"q0": ["cat"] * 3, "q1": ["cat"] * 3}


def test_mistakes_are_as_frequent_as_wanted_and_uniform_over_the_wrong_classes(tmp_path: Path):
    annotator = oracle(tmp_path, n=2000, noise=0.3)
    ask(annotator, list(range(2000)))

    counts = Counter(given[0] for given in values(annotator).values())

    # 600 mistakes expected, standard deviation sqrt(2000 * 0.3 * 0.7) = 20.5; halves of them 300 +- 14.
    assert abs(counts["dog"] + counts["cow"] - 600) < 5 * 20.5
    assert abs(counts["dog"] - counts["cow"]) < 5 * 24.5


def test_an_answer_depends_on_image_person_and_seed_only(tmp_path: Path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    one, two = oracle(tmp_path / "a", noise=0.5, annotators=2), oracle(tmp_path / "b", noise=0.5, annotators=2)
    other = oracle(tmp_path / "c", noise=0.5, annotators=2, seed=1)
    ask(one, list(range(50)))
    ask(two, [7])
    ask(two, list(range(49, -1, -1)), "r")
    ask(other, list(range(50)))

    first, second = values(one), values(two)

    assert second["q7"] == first["q7"] == second["r7"]
    assert all(second[f"r{number}"] == first[f"q{number}"] for number in range(50))
    assert values(other) != first
    assert len({tuple(given) for given in first.values()}) > 3  # the two people err independently


PEOPLE = ("ann", "bob", "cyd")


def real_people(tmp_path: Path, n: int = 300, **options: object) -> SimulatedAnnotator:
    """Ann says cat, Bob dog and Cyd cow, always."""
    rows = "".join(f"{image(number).sha256},cat,dog,cow\n" for number in range(n))
    (tmp_path / "people.csv").write_text("sha256,ann,bob,cyd\n" + rows)
    truth = read_truth(tmp_path / "people.csv", PEOPLE)
    return SimulatedAnnotator(truth, CLASSES, tmp_path / "people.jsonl", wording=SingleChoice(), **options)


def test_each_image_is_answered_by_one_of_the_real_people_all_equally_often(tmp_path: Path):
    annotator = real_people(tmp_path, n=1500)
    ask(annotator, list(range(1500)))

    answers = [answer for page in annotator.pull(None) for task in page.tasks for answer in task.answers]

    assert {(answer.annotator, answer.value) for answer in answers} == {("ann", "cat"), ("bob", "dog"), ("cyd", "cow")}
    counts = Counter(answer.annotator for answer in answers)
    # 500 each expected, standard deviation sqrt(1500 * 1/3 * 2/3) = 18.3.
    assert counts.total() == 1500
    assert all(abs(counts[person] - 500) < 5 * 18.3 for person in PEOPLE)


def test_who_is_asked_depends_on_image_and_seed_only(tmp_path: Path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    one, two, other = real_people(tmp_path / "a"), real_people(tmp_path / "b"), real_people(tmp_path / "c", seed=1)
    for annotator, order in ((one, range(50)), (two, range(49, -1, -1)), (other, range(50))):
        ask(annotator, list(order))

    assert values(one) == values(two) != values(other)


def test_all_real_people_answer_with_their_names_in_an_order_of_the_image(tmp_path: Path):
    annotator = real_people(tmp_path, n=100, annotators=3)
    ask(annotator, list(range(100)))

    tasks = [task for page in real_people(tmp_path, n=100, annotators=3).pull(None) for task in page.tasks]

    assert all(
        {(a.annotator, a.value) for a in task.answers} == set(zip(PEOPLE, CLASSES, strict=True)) for task in tasks
    )
    assert [[(a.annotator, a.value) for a in task.answers] for task in tasks] == [
        annotator.answers(image(number)) for number in range(100)
    ]
    # Three who disagree: the label is that of whoever was first, and everybody is, for some images.
    assert {ClassificationJudge(CLASSES).agree(task.answers).value for task in tasks} == set(CLASSES)


def test_an_image_nobody_knows_is_named_before_anything_is_asked(tmp_path: Path):
    annotator = oracle(tmp_path, n=1)

    with pytest.raises(LabelError, match=r"has no label for /pool/x\.png"):
        ask(annotator, [0, 99])
    assert annotator.list_tasks() == []


def test_files_match_by_full_path_relative_path_or_unique_name(tmp_path: Path):
    (tmp_path / "truth.csv").write_text("\ufefffile,label\na/1.png,cat\n/else/2.png,dog\nb/3.png,cat\nc/3.png,dog\n")
    truth = read_truth(tmp_path / "truth.csv")

    assert truth.label(image(1, str(tmp_path / "a" / "1.png"))) == "cat"
    assert truth.label(image(1, "/moved/1.png")) == "cat"
    assert truth.label(image(2, "/else/2.png")) == "dog"
    assert truth.label(image(3, str(tmp_path / "c" / "3.png"))) == "dog"
    with pytest.raises(LabelError, match=r"names 3\.png more than once"):
        truth.label(image(3, "/moved/3.png"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\nx,cat\n", "line 1: the column 'file' or 'sha256' is missing; it has the columns name, label"),
        ("file,label\nx,\n", "line 2: the label is empty"),
    ],
)
def test_a_csv_that_cannot_be_used_is_explained(tmp_path: Path, text: str, words: str):
    (tmp_path / "truth.csv").write_text(text)

    with pytest.raises(LabelError, match=words):
        read_truth(tmp_path / "truth.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label,ann\nx,cat,cat\n", "line 1: the column 'bob' is missing; it has the columns file, label, ann"),
        ("file,ann,bob\nx,cat,dog\ny,, nan\n", "line 3: nobody answered"),
    ],
)
def test_answers_of_people_that_are_missing_are_named(tmp_path: Path, text: str, words: str):
    (tmp_path / "people.csv").write_text(text)

    with pytest.raises(LabelError, match=words):
        read_truth(tmp_path / "people.csv", ("ann", "bob"))


@pytest.mark.parametrize("nothing", ["", "-1", "NaN", " "])
def test_people_who_were_not_asked_do_not_answer(tmp_path: Path, nothing: str):
    (tmp_path / "people.csv").write_text(f"sha256,ann,bob,cyd\n{image(1).sha256},{nothing},dog,{nothing}\n")
    truth = read_truth(tmp_path / "people.csv", PEOPLE, CLASSES)

    assert SimulatedAnnotator(truth, CLASSES, tmp_path / "s.jsonl", wording=SingleChoice()).answers(image(1)) == [
        ("bob", "dog")
    ]
    with pytest.raises(LabelError, match=r"has 1 answers about .*; 2 are asked for"):
        SimulatedAnnotator(truth, CLASSES, tmp_path / "s.jsonl", wording=SingleChoice(), annotators=2).answers(image(1))


def test_minus_one_is_an_answer_where_a_class_is_called_so(tmp_path: Path):
    (tmp_path / "people.csv").write_text(f"sha256,ann\n{image(1).sha256},-1\n")
    truth = read_truth(tmp_path / "people.csv", ("ann",), ("-1", "1"))

    assert truth.said(image(1)) == ("-1",)


def test_a_truth_with_windows_paths_and_other_letters_is_found(tmp_path: Path):
    text = "sep=;\r\nFile;Label\r\nphotos\\1.png;cat\r\ncafe\u0301.png;dog\r\n"
    (tmp_path / "truth.csv").write_bytes(text.encode("utf-16"))
    truth = read_truth(tmp_path / "truth.csv")

    assert truth.label(image(1, str(tmp_path / "photos" / "1.png"))) == "cat"
    assert truth.label(image(2, str(tmp_path / "caf\u00e9.png"))) == "dog"


def test_a_missing_csv_is_named(tmp_path: Path):
    with pytest.raises(LabelError, match=r"nowhere\.csv cannot be read"):
        read_truth(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("n_bytes", [1, 20, 40])
def test_a_kill_in_the_middle_of_a_line_costs_that_task_only(tmp_path: Path, n_bytes: int):
    annotator = oracle(tmp_path)
    ask(annotator, [0, 1])
    state = tmp_path / "state.jsonl"
    state.write_bytes(state.read_bytes()[:-n_bytes])

    again = oracle(tmp_path)
    assert dict(again.reconcile({f"q{n}": image(n).sha256 for n in (0, 1)})) == {"q0": "1"}
    ask(again, [1])

    assert dict(oracle(tmp_path).reconcile({f"q{n}": image(n).sha256 for n in (0, 1)})) == {"q0": "1", "q1": "2"}


@pytest.mark.parametrize(
    "line", ["rubbish", "[]", '{"task": "2"}', '{"task": 2, "key": "q", "answers": []}', '{"task": "b", "key": "q"}']
)
def test_a_damaged_state_file_is_named_with_its_line(tmp_path: Path, line: str):
    annotator = oracle(tmp_path)
    ask(annotator, [0])
    with (tmp_path / "state.jsonl").open("a") as file:
        file.write(f"{line}\n")

    with pytest.raises(LabelingError, match=r"state\.jsonl, line 2"):
        oracle(tmp_path).list_tasks()


def test_a_pull_brings_only_what_came_since(tmp_path: Path):
    annotator = oracle(tmp_path)
    ask(annotator, [0, 1])
    mark = list(annotator.pull(None))[-1].mark
    ask(annotator, [2])

    assert [task.task.key for page in annotator.pull(mark) for task in page.tasks] == ["q2"]
    assert list(annotator.pull(list(annotator.pull(mark))[-1].mark)) == []
