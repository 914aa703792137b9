"""Push, pull and withdrawal of questions to people."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy.orm import Session

from alloop.errors import AlloopError, LabelingError
from alloop.labeling.annotator import Annotator
from alloop.loop.asking.answers import (
    Place,
    Recorded,
    adopt_answers,
    describe_outdated,
    is_ours,
    judged_by,
    list_adopted,
    named,
    record_answers,
    record_lost,
    resettle_open,
)
from alloop.loop.asking.last_push import begin_push, check_last_push, is_overtaken
from alloop.loop.asking.strangers import describe_orphaned
from alloop.loop.intake.ingest import add_images, mark_replaced, mark_vanished
from alloop.loop.intake.presence import Shown, find_replaced, still_there
from alloop.loop.workbench import Workbench
from alloop.loop.writer import check_writer
from alloop.records import ImageRef, ListedTask, OutgoingTask, QueryStatus, RoundState, Split, TaskAnswers
from alloop.store.images import find_places, find_refs, list_split
from alloop.store.queries import (
    QueryRecord,
    add_tasks,
    count_open_by_source,
    drop_open_tasks,
    find_by_keys,
    list_pushed,
    list_unsent,
    set_keys,
    set_status,
    set_task_ids,
    set_tasks_gone,
)
from alloop.store.rounds import find_last_round, find_model, find_round, set_state
from alloop.store.session import reading, transaction
from alloop.store.workspace import (
    add_event,
    drop_sync,
    find_sync,
    find_workspace_uuid,
    key_prefix,
    new_key_prefix,
    renew_workspace_uuid,
    set_mark,
    set_project,
    set_strangers,
)

GIVEN_UP = "project given up"
logger = logging.getLogger("alloop")


@dataclasses.dataclass(frozen=True, slots=True)
class Connection:
    """Annotator with an open project, and the rules for its answers."""

    annotator: Annotator
    place: Place


def connect_people(bench: Workbench, *, new_project: bool = False, take_over: bool = False) -> Connection:
    """Open the workspace's project in the labeling back end; create it the first time, or with `new_project`.

    Args:
        bench: Workbench of the workspace.
        new_project: True to leave the old project and create a new one.
        take_over: True to continue although another copy of the workspace has pushed to the project.

    Raises:
        LabelingError: The project was deleted or cannot hold our classes, the token is refused, another copy of the
            workspace has pushed, or images are being asked about through another back end.
        ServerUnavailable: The server is unavailable.
    """
    annotator = _build_annotator(bench)
    with reading(bench.project.database) as session:
        elsewhere = {source: n for source, n in count_open_by_source(session).items() if source != annotator.source}
    if new_project:
        for source in (*elsewhere, annotator.source):
            _forget_project(bench, source)
        annotator = _build_annotator(bench)  # with the new key of the workspace
    elif elsewhere:
        raise _moved(elsewhere, annotator.source)
    connection = _open_project(bench, annotator)
    if new_project and is_overtaken(bench.project, connection.annotator):
        # This copy has not pushed yet, so the found project belongs to the original workspace.
        _forget_project(bench, connection.annotator.source)
        connection = _open_project(bench, _build_annotator(bench))
    check_last_push(bench, connection.annotator, take_over=take_over)
    return connection


def _build_annotator(bench: Workbench) -> Annotator:
    with reading(bench.project.database) as session:
        key = find_workspace_uuid(session)
    return bench.annotator(key)


def _open_project(bench: Workbench, annotator: Annotator) -> Connection:
    with reading(bench.project.database) as session:
        known = find_sync(session, annotator.source)
    ref = annotator.open_project(known.project_ref if known else None, known.identity if known else None)
    if known is None or (known.project_ref, known.identity) != (ref, annotator.identity):
        with transaction(bench.project.database) as session:
            set_project(session, annotator.source, ref, annotator.identity)
    return Connection(annotator, judged_by(bench.project, annotator.source, named(ref, annotator.identity)))


def _moved(elsewhere: Mapping[str, int], backend: str) -> LabelingError:
    source, n = next(iter(elsewhere.items()))
    return LabelingError(
        f"{n} images are being asked about through '{source}', but [labeling] backend in alloop.toml is now "
        f"'{backend}', which cannot receive these answers.",
        f"Set [labeling] backend back to '{source}' until the images are answered and pulled. Or send them to "
        f"'{backend}' with `alloop push --new-project`: answers in '{source}' that were not pulled yet are then lost.",
    )


def push(bench: Workbench, number: int, people: Connection | None = None) -> int:
    """Make a task for every open query without a task: SELECTED → PUSHED.

    Queries were recorded when they were chosen. Keys that the server knows from an interrupted push are recorded; the
    others are sent in batches, each recorded before the next. Tasks of an interrupted push that arrive later, and
    duplicates, are found afterwards.

    Returns:
        Number of tasks that were made or found.
    """
    people = people or connect_people(bench)
    with transaction(bench.project.database) as session:
        unsent, refs = _sendable(session, bench, list_unsent(session))
        model = find_model(session, find_round(session, number).id)
    by_key = {query.key: query for query in unsent}
    done = _record_tasks(bench, people, _reconcile(people, by_key), by_key)
    version = None if model is None else model.name
    tasks = [_task(query, refs[query.image_id], version) for query in unsent if query.key not in done]
    if tasks:
        begin_push(bench, people.annotator)
    for made in _while_writer(bench, people.annotator.push(tasks)):
        done |= _record_tasks(bench, people, made, by_key)
        bench.progress("pushing tasks", len(done), len(unsent))
    if tasks:
        _settle_copies(bench, people, {task.key: by_key[task.key] for task in tasks})
    left_out = [key for key in by_key if key not in done]
    if left_out:
        raise LabelingError(
            f"{len(left_out)} of {len(by_key)} images did not become tasks, for example {left_out[0]}.",
            "Run `alloop push` again. Images that became tasks are recorded and will not be sent twice.",
        )
    with transaction(bench.project.database) as session:
        current = find_round(session, number)
        if current.state is RoundState.SELECTED:
            set_state(session, current.id, RoundState.SELECTED, RoundState.PUSHED)
        add_event(session, bench.user, "pushed", bench.now(), number, tasks=len(done), project=people.place.project_ref)
    return len(done)


def pull(bench: Workbench, people: Connection | None = None) -> Recorded:
    """Record all answers since the last pull, page by page; then look for deleted tasks.

    Answers to tasks that the database does not know, or knows with another image, are not recorded.
    """
    people = people or connect_people(bench)
    place, recorded = people.place, Recorded()
    with reading(bench.project.database) as session:
        known = find_sync(session, place.source)
        pushed = list_pushed(session, place.source, place.project_ref)
    seen = 0
    for page in people.annotator.pull(known.mark if known else None):
        with reading(bench.project.database) as session:
            replaced = _replaced_files(session, page.tasks)
        with transaction(bench.project.database) as session:
            record_answers(session, place, page.tasks, recorded, bench.now(), replaced)
            stale = mark_replaced(session, replaced, bench.now())
            set_mark(session, place.source, page.mark, bench.now())
        if stale:
            add_images(bench, stale)
        seen += len(page.tasks)
        bench.progress("pulling answers", seen, 0)
    ours = _own_tasks(bench, place, people.annotator.list_tasks(), recorded)
    if ours - pushed.keys():
        _settle_copies(bench, people, {query.key: query for query in pushed.values()})
    with transaction(bench.project.database) as session:
        resettle_open(session, place, bench.now())
        # Read again, because the recorded pages may have settled queries.
        now = list_pushed(session, place.source, place.project_ref)
        lost = [query for task_id, query in now.items() if task_id in pushed and task_id not in ours]
        record_lost(session, lost, recorded, bench.now())
        set_mark(session, place.source, None, bench.now())
        if recorded.has_changes:
            last = find_last_round(session)
            data = {**dataclasses.asdict(recorded), "unknown": dict(recorded.unknown)}
            add_event(session, bench.user, "pulled", bench.now(), last.number if last else None, **data)
    if recorded.outdated:
        logger.warning("%s", describe_outdated(recorded.outdated))
    withdraw_junk(bench, people)
    _follow_moves(bench, people)
    return recorded


def adopt(bench: Workbench) -> tuple[int, int]:
    """Record answers to tasks that this workspace made but its database does not know, for the images they show.

    A second call records only new and changed answers.

    Returns:
        (number of answers recorded, number of tasks left out because their image is not in the pool).
    """
    people, recorded, n_left_out = connect_people(bench), Recorded(), 0
    seen = 0
    for page in people.annotator.pull(None):
        with transaction(bench.project.database) as session:
            n_left_out += adopt_answers(session, people.place, page.tasks, recorded, bench.now())
        seen += len(page.tasks)
        bench.progress("reading answers", seen, 0)
    n = recorded.new + recorded.edited + recorded.deleted
    with transaction(bench.project.database) as session:
        add_event(session, bench.user, "answers adopted", bench.now(), answers=n, left_out=n_left_out)
    return n, n_left_out


def _follow_moves(bench: Workbench, people: Connection) -> None:
    """Update the addresses of images in open tasks. Log a warning if that is not possible."""
    with reading(bench.project.database) as session:
        pushed = list_pushed(session, people.place.source, people.place.project_ref)
        waiting = {task_id: query for task_id, query in pushed.items() if query.status is QueryStatus.OPEN}
        places = find_places(session, {query.image_id for query in waiting.values()})
        refs = find_refs(session, places)
    there = {query.image_id: still_there(places.get(query.image_id, ())) for query in waiting.values()}
    gone = [image_id for image_id, paths in there.items() if not paths]
    if gone:
        logger.warning(
            "%d images being asked about are not where they were, for example %s: people may not see them. If they "
            "were moved, run `alloop pool add FOLDER` with their new folder; the next `alloop run` then updates the "
            "tasks.",
            len(gone),
            next((places[image_id][0].path for image_id in gone if image_id in places), _hash_of(waiting, gone[0])),
        )
    images = {
        task_id: [dataclasses.replace(refs[query.image_id], path=path) for path in there[query.image_id]]
        for task_id, query in waiting.items()
        if there[query.image_id] and query.image_id in refs
    }
    try:
        changed = people.annotator.show(images) if images else 0
    except LabelingError as error:
        logger.warning("People may not see the images being asked about. %s %s", error.message, error.hint)
        return
    if changed:
        logger.info("%d open tasks got the new addresses of their images.", changed)
        with transaction(bench.project.database) as session:
            add_event(session, bench.user, "tasks follow images", bench.now(), tasks=changed)


def _hash_of(waiting: Mapping[str, QueryRecord], image_id: int) -> str:
    """Return words for an image without a path, whose file was replaced by another image."""
    return next(f"image {query.sha256[:12]}" for query in waiting.values() if query.image_id == image_id)


def withdraw(bench: Workbench, number: int, people: Connection | None = None) -> int:
    """Withdraw a round's open queries whose tasks nobody has started. Answers are pulled first and kept.

    Returns:
        Number of withdrawn queries.
    """
    people = people or connect_people(bench)
    never_sent = _withdraw_unsent(bench, number, people)
    pull(bench, people)
    with reading(bench.project.database) as session:
        pushed = list_pushed(session, people.place.source, people.place.project_ref)
    mine = {
        task_id: query
        for task_id, query in pushed.items()
        if query.round_number == number and query.status is QueryStatus.OPEN
    }
    gone = people.annotator.withdraw(list(mine))
    recorded = Recorded()
    with transaction(bench.project.database) as session:
        lost = [query for task_id, query in mine.items() if task_id in gone]
        record_lost(session, lost, recorded, bench.now())
        add_event(session, bench.user, "withdrawn", bench.now(), number, queries=recorded.lost + never_sent)
    return recorded.lost + never_sent


def withdraw_junk(bench: Workbench, people: Connection) -> int:
    """Take back the tasks about images that were marked as junk, if nobody has answered or started them.

    Returns:
        Number of tasks that were taken back.
    """
    with reading(bench.project.database) as session:
        junk = set(list_split(session, Split.JUNK))
        pushed = list_pushed(session, people.place.source, people.place.project_ref) if junk else {}
    mine = {
        task_id: query
        for task_id, query in pushed.items()
        if query.image_id in junk and query.status is QueryStatus.WITHDRAWN
    }
    if not mine:
        return 0
    gone = people.annotator.withdraw(list(mine))
    with transaction(bench.project.database) as session:
        set_tasks_gone(session, [query.id for task_id, query in mine.items() if task_id in gone], bench.now())
    return len(gone)


def try_withdraw_junk(bench: Workbench) -> None:
    """Take the tasks about junk back now. If that is not possible, log a warning; the next pull tries again."""
    try:
        withdraw_junk(bench, connect_people(bench))
    except AlloopError as error:
        logger.warning(
            "The tasks about the images were not taken back yet: %s The next `alloop run` or `alloop pull` tries "
            "again; answers to them are kept, but do not count.",
            error.message,
        )


def _withdraw_unsent(bench: Workbench, number: int, people: Connection) -> int:
    """Withdraw a round's queries without a task, after recording the tasks of an interrupted push."""
    with reading(bench.project.database) as session:
        by_key = {query.key: query for query in list_unsent(session) if query.round_number == number}
    there = _record_tasks(bench, people, _reconcile(people, by_key), by_key)
    unsent = [query for key, query in by_key.items() if key not in there]
    if unsent:
        with transaction(bench.project.database) as session:
            for query in unsent:
                set_status(session, query.id, QueryStatus.WITHDRAWN, bench.now())
    return len(unsent)


def _replaced_files(session: Session, tasks: Sequence[TaskAnswers]) -> list[Shown]:
    """Return files of answered tasks that now have other bytes than their images: people may have seen either."""
    queries = find_by_keys(session, [found.task.key for found in tasks])
    shown = [
        (found.file, queries[found.task.key].sha256)
        for found in tasks
        if found.answers and found.file is not None and is_ours(found.task, queries)
    ]
    return find_replaced(session, shown)


def _own_tasks(bench: Workbench, place: Place, there: Sequence[ListedTask], recorded: Recorded) -> frozenset[str]:
    """Return the ids of the tasks of our queries. Count the others as orphaned or foreign in `recorded`."""
    with reading(bench.project.database) as session:
        queries, prefix = find_by_keys(session, [task.key for task in there]), key_prefix(session)
        adopted, sync = list_adopted(session, place), find_sync(session, place.source)
    others = [task for task in there if not is_ours(task, queries)]
    orphaned = [task for task in others if task.key.startswith(prefix)]
    recorded.orphaned = sum(place.scope(task.id) not in adopted for task in orphaned)
    recorded.foreign = len(others) - len(orphaned)
    if sync is not None and (sync.n_orphaned, sync.n_foreign) != (recorded.orphaned, recorded.foreign):
        with transaction(bench.project.database) as session:
            set_strangers(session, place.source, recorded.orphaned, recorded.foreign)
    if recorded.orphaned:
        logger.warning("%s", describe_orphaned(recorded.orphaned))
    return frozenset(task.id for task in there) - {task.id for task in others}


def _reconcile(people: Connection, by_key: Mapping[str, QueryRecord]) -> Mapping[str, str]:
    return people.annotator.reconcile({key: query.sha256 for key, query in by_key.items()})


def _settle_copies(bench: Workbench, people: Connection, by_key: Mapping[str, QueryRecord]) -> None:
    """Make sure that each query has one task, even if a request of an interrupted push was executed later.

    The back end deletes copies that nobody has started. The task that stays is recorded.
    """
    found = _reconcile(people, by_key)
    with reading(bench.project.database) as session:
        recorded = {
            query.key: task_id
            for task_id, query in list_pushed(session, people.place.source, people.place.project_ref).items()
        }
    moved = {
        by_key[key].id: task_id
        for key, task_id in found.items()
        if key in by_key and key in recorded and recorded[key] != task_id
    }
    if moved:
        with transaction(bench.project.database) as session:
            set_task_ids(session, moved)
            add_event(session, bench.user, "copies taken back", bench.now(), queries=len(moved))


def _forget_project(bench: Workbench, source: str) -> None:
    """Prepare the open queries for a push to a new project. Answers pulled so far stay.

    The workspace gets a new identity and its open queries get new keys, so that tasks of the old project or of a copy
    of the workspace are never taken for new ones. If the project was already dropped (the same command was killed
    before it made a new one), nothing changes.
    """
    with transaction(bench.project.database) as session:
        if find_sync(session, source) is None:
            return
        dropped = drop_open_tasks(session, source)
        drop_sync(session, source)
        renew_workspace_uuid(session)
        unsent = list_unsent(session)
        prefixes = {number: new_key_prefix(session, number) for number in {query.round_number for query in unsent}}
        set_keys(session, {query.id: f"{prefixes[query.round_number]}-{query.image_id}" for query in unsent})
        add_event(session, bench.user, GIVEN_UP, bench.now(), open_tasks=dropped)


def _sendable(
    session: Session, bench: Workbench, unsent: Sequence[QueryRecord]
) -> tuple[list[QueryRecord], dict[int, ImageRef]]:
    """Return the queries whose image file still has the same bytes, and their images. Withdraw the other queries."""
    refs = find_refs(session, [query.image_id for query in unsent])
    vanished = mark_vanished(session, bench, [ref.path for ref in refs.values()])
    replaced = find_replaced(session, [(ref.path, ref.sha256) for ref in refs.values()])
    gone = {*vanished, *mark_replaced(session, replaced, bench.now())}
    if gone:
        refs = find_refs(session, [query.image_id for query in unsent])
    for query in unsent:
        if query.image_id not in refs:
            set_status(session, query.id, QueryStatus.WITHDRAWN, bench.now())
    return [query for query in unsent if query.image_id in refs], refs


def _while_writer(bench: Workbench, batches: Iterator[Mapping[str, str]]) -> Iterator[Mapping[str, str]]:
    """Yield batches one by one while the lease holds; taking the next batch sends it."""
    while True:
        with reading(bench.project.database) as session:
            check_writer(session, bench.lease)
        made = next(batches, None)
        if made is None:
            return
        yield made


def _record_tasks(
    bench: Workbench, people: Connection, made: Mapping[str, str], by_key: dict[str, QueryRecord]
) -> set[str]:
    tasks = {key: task_id for key, task_id in made.items() if key in by_key}
    if tasks:
        with transaction(bench.project.database) as session:
            check_writer(session, bench.lease)
            by_query = {by_key[key].id: task_id for key, task_id in tasks.items()}
            add_tasks(session, people.place.source, people.place.project_ref, by_query, bench.now())
    return set(tasks)


def _task(query: QueryRecord, ref: ImageRef, model_version: str | None) -> OutgoingTask:
    return OutgoingTask(query.key, ref, query.predicted, query.confidence, model_version)
