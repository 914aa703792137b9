"""Effects of annotators' actions: versions, tombstones, the status of queries, labels."""

import datetime as dt
from collections.abc import Iterator

import pytest
from factories import NOW, add_pool_image, fake_sha256, make_query
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from alloop.consensus import ClassificationJudge
from alloop.loop.asking.answers import Place, Recorded, record_answers, record_lost, resettle_unknown
from alloop.loop.intake.labels import derive_labels
from alloop.records import Answer, Consensus, ListedTask, Outcome, QueryStatus, RoundState, TaskAnswers
from alloop.store.annotations import list_labels
from alloop.store.queries import add_queries, add_tasks, list_queries
from alloop.store.rounds import add_round, set_state
from alloop.store.session import transaction

PLACE = Place("s", "7", ClassificationJudge(("cat", "dog")), 1)


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    """Round 0 with open queries about images 1 and 2 (keys q-1, q-2), pushed as tasks 11 and 12."""
    with transaction(database) as opened:
        ids = [add_pool_image(opened, number) for number in (1, 2)]
        started = add_round(opened, 0, {}, 0, NOW)
        add_queries(opened, started.id, [make_query(image_id, rank=image_id) for image_id in ids], "q", NOW)
        add_tasks(opened, "s", "7", {query.id: str(10 + query.image_id) for query in list_queries(opened)}, NOW)
        yield opened


def label(value: str, *, name: str = "a1", who: str = "ada", minute: int = 0) -> Answer:
    return Answer(name, who, Outcome.LABEL, value, NOW + dt.timedelta(minutes=minute), 2.5)


def nothing(outcome: Outcome, *, name: str = "a1") -> Answer:
    return Answer(name, "ada", outcome, None, NOW)


def pulled(
    session: Session,
    *answers: Answer,
    key: str = "q-1",
    task: str = "11",
    place: Place = PLACE,
    sha256: str | None = None,
) -> Recorded:
    recorded = Recorded()
    record_answers(session, place, [TaskAnswers(ListedTask(task, key, sha256), answers)], recorded, NOW)
    return recorded


def statuses(session: Session) -> list[QueryStatus]:
    return [query.status for query in list_queries(session)]


def labels(session: Session) -> dict[int, str]:
    return {found.image_id: found.consensus.value for found in list_labels(session)}


def annotations(session: Session) -> list[tuple[int, str, str | None]]:
    rows = session.execute(text("SELECT version, outcome, value FROM annotation ORDER BY external_id, version"))
    return [(version, outcome, value) for version, outcome, value in rows]


def test_an_answer_becomes_an_annotation_settles_its_query_and_gives_a_label(session: Session):
    recorded = pulled(session, label("cat"))

    assert recorded == Recorded(new=1)
    assert annotations(session) == [(1, "label", "cat")]
    assert statuses(session) == [QueryStatus.ANSWERED, QueryStatus.OPEN]
    assert list_queries(session)[0].settled_at is not None
    assert labels(session) == {1: "cat"}


def test_recording_the_same_again_writes_nothing(session: Session):
    pulled(session, label("cat"))
    before = list_queries(session)

    assert pulled(session, label("cat", minute=5)) == Recorded()
    assert annotations(session) == [(1, "label", "cat")]
    assert list_queries(session) == before


def test_an_edit_is_a_second_version_and_the_first_stays(session: Session):
    pulled(session, label("cat"))

    assert pulled(session, label("dog", minute=5)) == Recorded(edited=1)
    assert annotations(session) == [(1, "label", "cat"), (2, "label", "dog")]
    assert labels(session) == {1: "dog"}


def test_a_deleted_answer_leaves_a_tombstone_and_its_query_is_open_again(session: Session):
    pulled(session, label("cat"))

    assert pulled(session) == Recorded(deleted=1)
    assert annotations(session) == [(1, "label", "cat"), (2, "deleted", None)]
    assert statuses(session)[0] is QueryStatus.OPEN
    assert list_queries(session)[0].settled_at is None
    assert labels(session) == {}
    assert pulled(session) == Recorded()
    assert pulled(session, label("dog", name="a2")) == Recorded(new=1)
    assert labels(session) == {1: "dog"}


def test_an_answer_deleted_after_the_round_does_not_open_it_again(session: Session):
    pulled(session, label("cat"))
    set_state(session, 1, RoundState.CREATED, RoundState.CLOSED)

    pulled(session)

    assert statuses(session)[0] is QueryStatus.WITHDRAWN
    assert labels(session) == {}


def test_an_answer_deleted_while_the_image_is_asked_about_elsewhere_withdraws_the_old_query(session: Session):
    pulled(session, label("cat"))
    set_state(session, 1, RoundState.CREATED, RoundState.CLOSED)
    add_queries(session, add_round(session, 1, {}, 0, NOW).id, [make_query(1, rank=1)], "again", NOW)

    pulled(session)

    assert statuses(session) == [QueryStatus.WITHDRAWN, QueryStatus.OPEN, QueryStatus.OPEN]


def test_a_late_answer_to_a_query_of_a_closed_round_counts(session: Session):
    set_state(session, 1, RoundState.CREATED, RoundState.CLOSED)

    pulled(session, label("dog"), key="q-2", task="12")

    assert statuses(session)[1] is QueryStatus.ANSWERED
    assert labels(session) == {2: "dog"}


@pytest.mark.parametrize(
    ("outcome", "status"), [(Outcome.SKIP, QueryStatus.SKIPPED), (Outcome.EMPTY, QueryStatus.EMPTY)]
)
def test_a_skip_and_an_empty_submission_settle_without_a_label(session: Session, outcome: Outcome, status: QueryStatus):
    assert pulled(session, nothing(outcome)) == Recorded(new=1)

    assert statuses(session)[0] is status
    assert labels(session) == {}
    assert annotations(session) == [(1, outcome.value, None)]


def test_who_changes_a_label_into_a_skip_takes_the_label_back(session: Session):
    pulled(session, label("cat"))

    pulled(session, nothing(Outcome.SKIP))

    assert statuses(session)[0] is QueryStatus.SKIPPED
    assert labels(session) == {}


def test_an_unknown_class_is_kept_and_becomes_a_label_once_the_class_is_added(session: Session):
    recorded = pulled(session, label("bird"))

    assert recorded.unknown == {"bird": 1}
    assert statuses(session)[0] is QueryStatus.UNKNOWN
    assert labels(session) == {}
    assert annotations(session) == [(1, "label", "bird")]

    now = Place("s", "7", ClassificationJudge(("cat", "dog", "bird")), 1)
    derive_labels(session, now.judge, NOW)
    resettle_unknown(session, now, NOW)

    assert statuses(session)[0] is QueryStatus.ANSWERED
    assert labels(session) == {1: "bird"}
    assert annotations(session) == [(1, "label", "bird")]


def test_answers_to_tasks_that_are_not_ours_are_left_alone(session: Session):
    recorded = pulled(session, label("cat"), key="somebody else's")

    assert recorded == Recorded()
    assert annotations(session) == []


def test_an_answer_to_a_task_about_another_image_is_left_alone_although_the_key_is_ours(session: Session):
    assert pulled(session, label("cat"), sha256=fake_sha256(2)) == Recorded()
    assert statuses(session) == [QueryStatus.OPEN, QueryStatus.OPEN]
    assert annotations(session) == []

    assert pulled(session, label("cat"), sha256=fake_sha256(1)) == Recorded(new=1)
    assert labels(session) == {1: "cat"}


def test_two_people_are_needed_where_two_are_asked_for(session: Session):
    place = Place("s", "7", ClassificationJudge(("cat", "dog")), 2)
    pulled(session, label("cat"), place=place)
    assert statuses(session)[0] is QueryStatus.OPEN

    pulled(session, label("cat"), label("dog", name="a2", who="ben", minute=1), place=place)

    assert statuses(session)[0] is QueryStatus.ANSWERED
    found = list_labels(session)[0]
    assert found.consensus == Consensus("cat", 0.5, 2)


def test_the_same_number_in_another_project_is_another_annotation(session: Session):
    place = Place("s", "8", ClassificationJudge(("cat", "dog")), 2)
    pulled(session, label("cat"))

    recorded = pulled(session, label("dog", who="ben"), task="99", place=place)

    assert recorded == Recorded(new=1)
    assert annotations(session) == [(1, "label", "cat"), (1, "label", "dog")]


def test_a_lost_task_takes_its_open_query_back_but_keeps_what_was_answered(session: Session):
    pulled(session, label("cat"))
    recorded = Recorded()

    record_lost(session, list_queries(session), recorded, NOW)

    assert recorded.lost == 1
    assert statuses(session) == [QueryStatus.ANSWERED, QueryStatus.WITHDRAWN]
    assert labels(session) == {1: "cat"}
    assert all(query.gone for query in list_queries(session))


def test_labels_rebuilt_from_scratch_are_those_that_grew(session: Session):
    """Every kind of change, in the order in which it happens to people."""
    steps: list[tuple[Answer, ...]] = [
        (label("cat"),),
        (label("cat"), label("dog", name="a2", who="ben", minute=1)),
        (label("dog", minute=2), label("dog", name="a2", who="ben", minute=1)),
        (label("dog", name="a2", who="ben", minute=1),),
        (nothing(Outcome.SKIP), label("bird", name="a2", who="ben", minute=3)),
        (label("cat", name="a3", who="cleo", minute=4), label("bird", name="a2", who="ben", minute=3)),
    ]
    for answers in steps:
        pulled(session, *answers)
        grown = list_labels(session)

        session.execute(text("DELETE FROM label"))
        derive_labels(session, PLACE.judge, NOW)

        assert list_labels(session) == grown
    # a1: cat, dog, deleted, skipped, deleted; a2: dog, bird; a3: cat
    assert [version for version, _, _ in annotations(session)] == [1, 2, 3, 4, 5, 1, 2, 1]
