"""People: what each person labeled, how fast, and how often others agree."""

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from alloop.evaluation.intervals import wilson
from alloop.names import count
from alloop.project import Project
from alloop.records import Answer, Outcome
from alloop.report.headlines import Headline, interval_of
from alloop.store.annotations import find_classes, list_current
from alloop.store.session import reading

DAYS = 30  # newest days that are shown
TONES = 8  # colors of people; further people share the last one


@dataclasses.dataclass(frozen=True, slots=True)
class Person:
    """Row of a person, in words."""

    name: str
    labels: int
    skipped: int
    empty: int
    seconds: str
    agreement: str
    consensus: str


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Part of a day's bar: the answers of one person.

    Attributes:
        tone: Number of the person's color, from 1.
        start, width: In percent of the busiest day.
        words: Person and number of answers.
    """

    tone: int
    start: float
    width: float
    words: str


@dataclasses.dataclass(frozen=True, slots=True)
class Day:
    """Number of answers of a day, and its bar."""

    name: str
    n: int
    pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class People:
    """Content of the part."""

    head: Headline
    people: tuple[Person, ...]
    days: tuple[Day, ...]


def gather_people(project: Project, *, is_public: bool = False) -> People:
    """Read all current answers and count them. In public, people have numbers in place of names."""
    with reading(project.database) as session:
        records = [(record.image_id, record.answer) for record in list_current(session)]
        classes = find_classes(session, {image_id for image_id, _ in records})
    given = [(image_id, answer) for image_id, answer in records if answer.outcome is not Outcome.DELETED]
    if is_public:
        names = number_people(answer.annotator for _, answer in given)
        given = [
            (image_id, dataclasses.replace(answer, annotator=names[answer.annotator])) for image_id, answer in given
        ]
    by_person: dict[str, list[Answer]] = defaultdict(list)
    for _, answer in given:
        by_person[answer.annotator].append(answer)
    labels = [
        (image_id, answer.annotator, answer.value) for image_id, answer in given if answer.outcome is Outcome.LABEL
    ]
    same, agreed = agreements(labels), with_consensus(labels, classes)
    people = tuple(
        _person(name, answers, same.get(name), agreed.get(name))
        for name, answers in sorted(by_person.items(), key=_in_order)
    )
    return People(_head(people, same), people, _days(answer for _, answer in given))


def number_people(annotators: Iterable[str]) -> dict[str, str]:
    """Return person → "Person 1" and so on. Most answers come first, so that the order says nothing of the names."""
    counted = Counter(annotators)
    return {name: f"Person {number}" for number, (name, _) in enumerate(counted.most_common(), start=1)}


def _in_order(row: tuple[str, object]) -> tuple[int, str]:
    """Return the place of a person: by name, and Person 10 after Person 9."""
    number = row[0].removeprefix("Person ")
    return (int(number), "") if row[0] != number and number.isdecimal() else (0, row[0])


def agreements(labels: Iterable[tuple[int, str, str | None]]) -> dict[str, tuple[int, int]]:
    """Return person → (number of pairs with another person's label that agree, number of pairs).

    Args:
        labels: Image, person and label.
    """
    by_image: dict[int, list[tuple[str, str | None]]] = defaultdict(list)
    for image_id, person, value in labels:
        by_image[image_id].append((person, value))
    found: dict[str, tuple[int, int]] = {}
    for answers in by_image.values():
        for at, (person, value) in enumerate(answers):
            others = [other for place, (who, other) in enumerate(answers) if place != at and who != person]
            agree, n = found.get(person, (0, 0))
            if others:
                found[person] = (agree + others.count(value), n + len(others))
    return found


def with_consensus(
    labels: Iterable[tuple[int, str, str | None]], classes: Mapping[int, str]
) -> dict[str, tuple[int, int]]:
    """Return person → (number of labels that became the label of the image, number of labels).

    Only images that several people labeled count. A person's own answer is one of the votes for the label.

    Args:
        labels: Image, person and label.
        classes: Image → label that people agreed on; images without such a label are left out.
    """
    by_image: dict[int, dict[str, str | None]] = defaultdict(dict)
    for image_id, person, value in labels:
        by_image[image_id][person] = value
    found: dict[str, tuple[int, int]] = {}
    for image_id, answers in by_image.items():
        if len(answers) > 1 and image_id in classes:
            for person, value in answers.items():
                agree, n = found.get(person, (0, 0))
                found[person] = (agree + (value == classes[image_id]), n + 1)
    return found


def _person(name: str, answers: list[Answer], same: tuple[int, int] | None, agreed: tuple[int, int] | None) -> Person:
    outcomes = Counter(answer.outcome for answer in answers)
    seconds = [answer.lead_time for answer in answers if answer.lead_time is not None]
    return Person(
        name=name,
        labels=outcomes[Outcome.LABEL],
        skipped=outcomes[Outcome.SKIP],
        empty=outcomes[Outcome.EMPTY],
        seconds=f"{statistics.median(seconds):.1f}" if seconds else "–",
        agreement="–" if same is None else interval_of(wilson(*same)),
        consensus="–" if agreed is None else interval_of(wilson(*agreed)),
    )


def _head(people: tuple[Person, ...], same: Mapping[str, tuple[int, int]]) -> Headline:
    n = sum(person.labels for person in people)
    if not people:
        return Headline("Nobody has labeled yet.", "This page shows who labeled, how fast, and who agrees with whom.")
    said = f"{count(n, 'label')} by {len(people)} {'person' if len(people) == 1 else 'people'}."
    if not same:
        return Headline(said, "No image was labeled by two people, so nothing is known about their agreement.")
    agree, pairs = sum(one[0] for one in same.values()), sum(one[1] for one in same.values())
    worst = min(same, key=lambda name: same[name][0] / same[name][1])
    return Headline(
        f"People agree on {100 * agree / pairs:.0f} % of the images that several of them labeled.",
        f"{said} {worst} agrees least with the others: {interval_of(wilson(*same[worst]))} %.",
    )


def _days(answers: Iterable[Answer]) -> tuple[Day, ...]:
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    for answer in answers:
        counted[f"{answer.updated_at:%Y-%m-%d}"][answer.annotator] += 1
        totals[answer.annotator] += 1
    tones = {name: min(place, TONES) for place, (name, _) in enumerate(totals.most_common(), start=1)}
    newest = sorted(counted.items(), reverse=True)[:DAYS]
    most = max((day.total() for _, day in newest), default=1)
    return tuple(Day(name, day.total(), _pieces(day, tones, 100 / most)) for name, day in newest)


def _pieces(day: Mapping[str, int], tones: Mapping[str, int], scale: float) -> tuple[Piece, ...]:
    pieces, start = [], 0.0
    for name, n in sorted(day.items(), key=lambda pair: (tones[pair[0]], pair[0])):
        pieces.append(Piece(tones[name], round(start, 2), round(n * scale, 2), f"{name} {n}"))
        start += n * scale
    return tuple(pieces)
