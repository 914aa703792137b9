"""Recording of answers: annotation versions, status of queries, labels."""

import dataclasses
import datetime as dt
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy.orm import Session

from alloop.consensus import Judge
from alloop.loop.intake.judge import judge_of
from alloop.loop.intake.labels import derive_labels
from alloop.loop.state import settle
from alloop.names import clean
from alloop.project import Project
from alloop.records import Answer, ListedTask, Outcome, QueryStatus, RoundState, Split, TaskAnswers
from alloop.store.annotations import AnnotationRecord, add_annotations, list_current
from alloop.store.images import find_image_ids, find_split
from alloop.store.queries import QueryRecord, find_by_keys, has_open_query, list_queries, set_status, set_tasks_gone
from alloop.store.rounds import find_round
from alloop.store.workspace import key_prefix


@dataclasses.dataclass
class Recorded:
    """Result of a pull.

    Attributes:
        new, edited, deleted: Numbers of written annotation versions.
        orphaned: Number of tasks that this workspace made but its database does not know, or knows with another image.
            The database was restored from a backup, or another copy of the workspace made them. They are not changed.
        foreign: Number of tasks in the same project that another workspace made. They are not changed.
        unknown: Value → number of new or edited answers with this value, which is not a class.
        outdated: Number of answers that do not count, because the file that people saw has other bytes than the image.
        lost: Open queries whose task was deleted on the server; their images return to the pool.
    """

    new: int = 0
    edited: int = 0
    deleted: int = 0
    orphaned: int = 0
    foreign: int = 0
    lost: int = 0
    outdated: int = 0
    unknown: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def has_changes(self) -> bool:
        """True if anything was written."""
        return any((self.new, self.edited, self.deleted, self.lost, self.outdated))


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Project in a labeling back end that answers come from, and the rules for them.

    Attributes:
        project_ref: Name of the project, different from those of all other servers (`named`).
        judge: Judge that decides which answers are votes.
    """

    source: str
    project_ref: str
    judge: Judge
    annotations_per_image: int

    def scope(self, task_id: str) -> str:
        """Return the prefix of stored ids of a task's annotations, because each server numbers annotations from 1."""
        return f"{self.project_ref}/{task_id}/"


def named(project_ref: str, identity: str) -> str:
    """Return a project's name that differs from those on all other servers."""
    return f"{project_ref}@{identity}" if identity else project_ref


def judged_by(project: Project, source: str = "", project_ref: str = "") -> Place:
    """Return the place with the current settings, so that a class added later makes old answers count."""
    labeling = project.config.labeling
    return Place(source, project_ref, judge_of(project.config.project), labeling.annotations_per_image)


def record_answers(
    session: Session,
    place: Place,
    tasks: Iterable[TaskAnswers],
    recorded: Recorded,
    now: dt.datetime,
    replaced: Collection[tuple[str, str]] = (),
) -> None:
    """Record the present answers of tasks. Recording the same answers again writes nothing.

    A task counts for a query only if it has the query's key and asks about the query's image. Other tasks are ignored.

    Args:
        session: Database session to write to.
        place: Source of the answers.
        tasks: Tasks with all their present answers.
        recorded: Counters to add to.
        now: Time to record.
        replaced: (file, content hash of the image that a task asks about) for files that now have other bytes. New
            answers to these tasks are kept but do not count. Answers recorded earlier still count.
    """
    listed = list(tasks)
    queries = find_by_keys(session, [task.task.key for task in listed])
    ours = [found for found in listed if is_ours(found.task, queries)]
    queries = {found.task.key: queries[found.task.key] for found in ours}
    known: dict[int, list[AnnotationRecord]] = {query.id: [] for query in queries.values()}
    for record in list_current(session, query_ids=list(known), source=place.source):
        if record.query_id is not None:
            known[record.query_id].append(record)
    fresh: list[AnnotationRecord] = []
    for found in ours:
        query = queries[found.task.key]
        # Answers to another task about the same image, perhaps in an abandoned project, must not be deleted by this
        # task.
        scope = place.scope(found.task.id)
        mine = _within(scope, known[query.id])
        target = _Target(query.image_id, query.id, scope, is_outdated=(found.file, query.sha256) in replaced)
        fresh += _changes(place, target, found.answers, mine, recorded, now)
    add_annotations(session, fresh, now)
    touched = {query.id: query for query in queries.values()}
    settle_queries(session, place, touched.values(), now)
    derive_labels(session, place.judge, now, {query.image_id for query in touched.values()})


def adopt_answers(
    session: Session, place: Place, tasks: Iterable[TaskAnswers], recorded: Recorded, now: dt.datetime
) -> int:
    """Record the answers to tasks that this workspace made but its database does not know, for the images they show.

    The answers become labels without a query: the reason and the probability of the selection are lost.

    Returns:
        Number of tasks that were left out because their image is not in the pool.
    """
    prefix, listed = key_prefix(session), list(tasks)
    queries = find_by_keys(session, [found.task.key for found in listed])
    orphaned = [
        found
        for found in listed
        if found.answers and found.task.key.startswith(prefix) and not is_ours(found.task, queries)
    ]
    images = find_image_ids(session, [found.task.sha256 or "" for found in orphaned])
    known: dict[int, list[AnnotationRecord]] = {image_id: [] for image_id in images.values()}
    for record in list_current(session, image_ids=list(known), source=place.source):
        known[record.image_id].append(record)
    fresh: list[AnnotationRecord] = []
    for found in orphaned:
        if (image_id := images.get(found.task.sha256 or "")) is not None:
            target = _Target(image_id, None, place.scope(found.task.id))
            mine = _within(target.scope, known[image_id])
            fresh += _changes(place, target, found.answers, mine, recorded, now)
    add_annotations(session, fresh, now)
    derive_labels(session, place.judge, now, set(images.values()))
    return sum(found.task.sha256 not in images for found in orphaned)


def list_adopted(session: Session, place: Place) -> set[str]:
    """Return the scopes of the tasks whose answers were adopted."""
    records = list_current(session, source=place.source, adopted=True)
    return {record.answer.external_id.rpartition("/")[0] + "/" for record in records}


def describe_outdated(n: int) -> str:
    """Return a message about answers to questions whose image file was replaced."""
    if n == 1:
        return (
            "1 answer does not count, because the image file was replaced after the question was sent: people may have "
            "seen either picture. The answer is kept, the question is withdrawn, and the new file is a new image of "
            "the pool."
        )
    return (
        f"{n} answers do not count, because the image file was replaced after the question was sent: people may have "
        "seen either picture. The answers are kept, the questions are withdrawn, and the new files are new images of "
        "the pool."
    )


def is_ours(task: ListedTask, queries: Mapping[str, QueryRecord]) -> bool:
    """Return whether a task belongs to one of these queries: same key and same image."""
    query = queries.get(task.key)
    return query is not None and task.asks_about(query.sha256)


def record_lost(session: Session, queries: Sequence[QueryRecord], recorded: Recorded, now: dt.datetime) -> None:
    """Record that tasks were deleted on the server. Earlier answers stay; open queries are withdrawn."""
    set_tasks_gone(session, [query.id for query in queries], now)
    for query in queries:
        if query.status is QueryStatus.OPEN:
            set_status(session, query.id, QueryStatus.WITHDRAWN, now)
            recorded.lost += 1


def settle_queries(session: Session, place: Place, queries: Iterable[QueryRecord], now: dt.datetime) -> None:
    """Update the status of queries from their current annotations."""
    wanted = {query.id: query for query in queries}
    answers: dict[int, list[Answer]] = {query_id: [] for query_id in wanted}
    for record in list_current(session, query_ids=list(wanted)):
        if record.query_id is not None and record.answer.outcome is not Outcome.DELETED:
            answers[record.query_id].append(record.answer)
    for query_id, query in wanted.items():
        status = settle(answers[query_id], place.judge, place.annotations_per_image)
        if status is QueryStatus.OPEN and query.status is not QueryStatus.OPEN:
            status = _reopened(session, query)
        if status is not query.status:
            set_status(session, query_id, status, now)


def resettle_unknown(session: Session, place: Place, now: dt.datetime) -> None:
    """Check answers with an unknown class again, because the class may have been added."""
    settle_queries(session, place, list_queries(session, status=QueryStatus.UNKNOWN), now)


def resettle_open(session: Session, place: Place, now: dt.datetime) -> None:
    """Settle open queries that have enough answers, since [labeling] annotations_per_image may have been lowered."""
    settle_queries(session, place, list_queries(session, status=QueryStatus.OPEN), now)


def _reopened(session: Session, query: QueryRecord) -> QueryStatus:
    """An answer was deleted: ask again, unless the round is over, or the image is junk or is asked about elsewhere."""
    over = find_round(session, query.round_number).state is RoundState.CLOSED
    is_junk = find_split(session, query.image_id) is Split.JUNK
    if over or is_junk or query.gone or has_open_query(session, query.image_id):
        return QueryStatus.WITHDRAWN
    return QueryStatus.OPEN


@dataclasses.dataclass(frozen=True, slots=True)
class _Target:
    """Image and query that the answers of a task are recorded for.

    Attributes:
        scope: Beginning of the stored ids of these answers.
        is_outdated: True if the file that people see now has other bytes than the image.
    """

    image_id: int
    query_id: int | None
    scope: str
    is_outdated: bool = False


def _within(scope: str, records: Iterable[AnnotationRecord]) -> dict[str, AnnotationRecord]:
    """Return the records whose id begins with the scope, by id."""
    return {record.answer.external_id: record for record in records if record.answer.external_id.startswith(scope)}


def _changes(
    place: Place,
    target: _Target,
    answers: Sequence[Answer],
    known: dict[str, AnnotationRecord],
    recorded: Recorded,
    now: dt.datetime,
) -> list[AnnotationRecord]:
    changes: list[AnnotationRecord] = []
    listed: set[str] = set()
    for given in answers:
        answer = _spelled(given, place.judge, target)
        listed.add(answer.external_id)
        before = known.get(answer.external_id)
        if _is_recorded(answer, before, target):
            continue
        if target.is_outdated:
            answer = dataclasses.replace(answer, outcome=Outcome.OUTDATED)
            recorded.outdated += 1
        elif before is None:
            recorded.new += 1
        else:
            recorded.edited += 1
        if answer.outcome is Outcome.LABEL and answer.value is not None and not place.judge.is_known(answer.value):
            recorded.unknown[answer.value] += 1
        version = 1 if before is None else before.version + 1
        changes.append(AnnotationRecord(target.image_id, target.query_id, place.source, version, answer))
    for external_id, before in known.items():
        if external_id not in listed and before.answer.outcome is not Outcome.DELETED:
            recorded.deleted += 1
            changes.append(_tombstone(before, now))
    return changes


def _is_recorded(answer: Answer, before: AnnotationRecord | None, target: _Target) -> bool:
    """Return whether the newest version of an annotation is the same."""
    if before is None:
        return False
    old = before.answer
    if target.is_outdated and old.outcome is not Outcome.DELETED:
        return True
    # An outdated answer stays outdated if the old file is put back. Only a changed answer counts again.
    is_same = old.outcome in (answer.outcome, Outcome.OUTDATED)
    return is_same and (old.annotator, old.value) == (answer.annotator, answer.value)


def _spelled(answer: Answer, judge: Judge, target: _Target) -> Answer:
    """Return the answer for storing: with its full id, class names as in the settings, and a cleaned annotator name."""
    value = None if answer.value is None else judge.spelled(answer.value)
    own_id, annotator = target.scope + answer.external_id, clean(answer.annotator)
    return dataclasses.replace(answer, external_id=own_id, value=value, annotator=annotator)


def _tombstone(before: AnnotationRecord, now: dt.datetime) -> AnnotationRecord:
    answer = dataclasses.replace(before.answer, outcome=Outcome.DELETED, value=None, updated_at=now)
    return dataclasses.replace(before, version=before.version + 1, answer=answer)
