"""Rows that must never exist are refused by the database itself, whoever writes to it."""

import pytest
from factories import NOW, add_pool_image, fake_sha256, make_query
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from alloop.records import QueryStatus, RoundState
from alloop.store.queries import add_queries, list_queries, set_status
from alloop.store.rounds import add_round, set_state
from alloop.store.session import transaction

WHEN = "'2026-01-02 03:04:05'"


@pytest.fixture
def asked(database: Engine) -> Engine:
    """Two images, round 0, an open query (id 1) about the first image (id 1) with a task."""
    with transaction(database) as session:
        first, _second = add_pool_image(session, 1), add_pool_image(session, 2)
        started = add_round(session, 0, {}, 0, NOW)
        add_queries(session, started.id, [make_query(first, rank=1)], "key", NOW)
        query = list_queries(session)[0].id
        assert (first, started.id, query) == (1, 1, 1)
    write(
        database,
        f"INSERT INTO task (query_id, source, project_ref, external_id, pushed_at) VALUES (1, 's', 'p', 't1', {WHEN})",
    )
    return database


def write(database: Engine, statement: str) -> None:
    with database.begin() as connection:
        connection.execute(text(statement))


def refuses(database: Engine, statement: str) -> None:
    with pytest.raises(IntegrityError):
        write(database, statement)


def image(sha256: str, split: str = "train") -> str:
    return (
        "INSERT INTO image (sha256, split, width, height, format, mode, phash, added_at) "
        f"VALUES ('{sha256}', '{split}', 1, 1, 'PNG', 'RGB', '0', {WHEN})"
    )


def location(path: str, image_id: str, status: str, reason: str = "NULL") -> str:
    return (
        "INSERT INTO image_location (path, image_id, status, reason, size, mtime_ns, seen_at) "
        f"VALUES ('{path}', {image_id}, '{status}', {reason}, 1, 1, {WHEN})"
    )


def query(key: str, image_id: int, rank: int, *, round_id: int = 1, status: str = "open", **values: str) -> str:
    columns = {"reason": "'acquired'", "probability": "NULL", **values}
    return (
        "INSERT INTO query (key, round_id, image_id, status, reason, strategy, rank, probability, created_at) VALUES "
        f"('{key}', {round_id}, {image_id}, '{status}', {columns['reason']}, 's', {rank}, {columns['probability']}, "
        f"{WHEN})"
    )


def annotation(
    external_id: str, version: int, *, outcome: str = "label", value: str = "'cat'", source: str = "s"
) -> str:
    return (
        "INSERT INTO annotation (image_id, query_id, source, external_id, version, annotator, outcome, value, "
        "answered_at, recorded_at) VALUES "
        f"(1, 1, '{source}', '{external_id}', {version}, 'ada', '{outcome}', {value}, {WHEN}, {WHEN})"
    )


def test_the_same_bytes_are_one_image(asked: Engine):
    write(asked, image("a" * 64))

    refuses(asked, image("a" * 64))
    refuses(asked, image(fake_sha256(1)))


@pytest.mark.parametrize("statement", [image("b" * 64, split="test"), image("short")])
def test_an_image_has_a_known_split_and_a_whole_hash(asked: Engine, statement: str):
    refuses(asked, statement)


def test_an_image_has_one_open_query(asked: Engine):
    write(asked, "UPDATE round SET state = 'closed'")
    write(
        asked, f"INSERT INTO round (number, state, config, seed, created_at) VALUES (1, 'created', '{{}}', 0, {WHEN})"
    )
    second = query("other", 1, 1, round_id=2)

    refuses(asked, second)
    with transaction(asked) as session:
        set_status(session, 1, QueryStatus.WITHDRAWN, NOW)
    write(asked, second)
    refuses(asked, "UPDATE query SET status = 'open' WHERE id = 1")


def test_a_round_asks_an_image_once_and_gives_a_rank_once(asked: Engine):
    refuses(asked, query("again", 1, 2, status="answered"))
    refuses(asked, query("same rank", 2, 1))
    refuses(asked, query("key-1", 2, 2))
    write(asked, query("fine", 2, 2))


@pytest.mark.parametrize(
    "statement",
    [
        query("k", 2, 2, status="pending"),
        query("k", 2, 2, reason="'because'"),
        query("k", 2, 2, probability="0"),
        query("k", 2, 2, probability="1.5"),
        query("k", 99, 2),
        query("k", 2, 2, round_id=99),
    ],
)
def test_a_query_is_of_something_for_a_reason_with_a_probability(asked: Engine, statement: str):
    refuses(asked, statement)


def test_a_query_is_one_task_and_a_task_one_query(asked: Engine):
    task = (
        "INSERT INTO task (query_id, source, project_ref, external_id, pushed_at) VALUES ({}, 's', 'p', '{}', "
        + WHEN
        + ")"
    )
    write(asked, query("fine", 2, 2))

    refuses(asked, task.format(1, "t2"))
    refuses(asked, task.format(2, "t1"))
    refuses(asked, task.format(99, "t3"))
    write(asked, task.format(2, "t2"))


def test_a_version_of_an_annotation_is_written_once(asked: Engine):
    write(asked, annotation("a1", 1))

    refuses(asked, annotation("a1", 1, value="'dog'"))
    write(asked, annotation("a1", 2))
    write(asked, annotation("a1", 1, source="other"))


@pytest.mark.parametrize(
    "statement",
    [annotation("a", 0), annotation("a", 1, value="NULL"), annotation("a", 1, outcome="maybe")],
)
def test_an_annotation_says_what_was_answered(asked: Engine, statement: str):
    refuses(asked, statement)


def test_one_round_at_a_time(asked: Engine):
    start = "INSERT INTO round (number, state, config, seed, created_at) VALUES ({}, '{}', '{{}}', 0, " + WHEN + ")"

    refuses(asked, start.format(1, "created"))
    refuses(asked, start.format(0, "closed"))
    with transaction(asked) as session:
        set_state(session, 1, RoundState.CREATED, RoundState.CLOSED)
    write(asked, start.format(1, "pushed"))
    refuses(asked, start.format(2, "created"))
    refuses(asked, "UPDATE round SET state = 'created' WHERE number = 0")
    refuses(asked, "UPDATE round SET state = 'odd' WHERE number = 1")


def test_a_database_is_of_one_workspace(database: Engine):
    row = "INSERT INTO workspace (id, uuid, created_at) VALUES ({}, 'u', " + WHEN + ")"
    write(database, row.format(1))

    refuses(database, row.format(1))
    refuses(database, row.format(2))


@pytest.mark.parametrize(
    "statement",
    [
        location("p", "NULL", "ok"),
        location("p", "NULL", "missing"),
        location("p", "NULL", "unreadable"),
        location("p", "1", "lost"),
        location("p", "99", "ok"),
        location("/pool/0001.png", "2", "ok"),
    ],
)
def test_a_location_is_an_image_or_says_why_not(asked: Engine, statement: str):
    refuses(asked, statement)


def test_an_image_that_something_refers_to_cannot_be_deleted(asked: Engine):
    refuses(asked, "DELETE FROM image WHERE id = 1")
    refuses(asked, "DELETE FROM query WHERE id = 1")
    refuses(asked, "DELETE FROM round WHERE id = 1")
