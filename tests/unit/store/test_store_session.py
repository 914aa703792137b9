"""Opening a database: readers beside a writer, all or nothing, errors in words."""

import contextlib
import datetime as dt
import sqlite3
import threading
from pathlib import Path

import pytest
from factories import NOW, add_pool_image
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from alloop.errors import ConfigError, DatabaseError, TemporaryError
from alloop.records import RoundState
from alloop.store.images import count_pool
from alloop.store.rounds import add_round, find_round, set_state
from alloop.store.session import connect, reading, sqlite_url, transaction
from alloop.store.workspace import add_event, list_events


def test_sqlite_has_foreign_keys_write_ahead_log_and_patience(tmp_path: Path):
    database = connect(f"sqlite:///{tmp_path / 'a.db'}")

    with reading(database) as session:
        found = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("foreign_keys", "journal_mode", "busy_timeout")
        }

    assert found == {"foreign_keys": 1, "journal_mode": "wal", "busy_timeout": 30_000}
    database.dispose()


def test_a_transaction_counts_as_a_whole_or_not_at_all(database: Engine):
    with pytest.raises(RuntimeError), transaction(database) as session:
        add_pool_image(session, 1)
        raise RuntimeError("in the middle")

    with reading(database) as session:
        assert count_pool(session).images == 0


def test_readers_do_not_wait_for_a_writer_and_see_what_was_before(database: Engine):
    with transaction(database) as session:
        add_pool_image(session, 1)
    seen: list[int] = []

    def look() -> None:
        with reading(database) as session:
            seen.append(count_pool(session).images)

    with transaction(database) as session:  # SQLite: BEGIN IMMEDIATE, the write lock is held from here
        add_pool_image(session, 2)
        reader = threading.Thread(target=look)
        reader.start()
        reader.join(timeout=20)
        assert seen == [1]
    look()
    assert seen == [1, 2]


def test_a_reader_sees_one_moment_however_long_it_looks(database: Engine):
    with transaction(database) as session:
        add_pool_image(session, 1)

    with reading(database) as session:
        before = count_pool(session).images
        with transaction(database) as other:
            add_pool_image(other, 2)
        after = count_pool(session).images

    assert (before, after) == (1, 1)


def test_what_a_reader_writes_does_not_count(database: Engine):
    with reading(database) as session:
        add_pool_image(session, 1)

    with reading(database) as session:
        assert count_pool(session).images == 0


def test_writers_queue_instead_of_failing_half_way(database: Engine):
    with transaction(database) as session:
        add_round(session, 0, {}, 0, NOW)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(10):
                with transaction(database) as session:
                    n = len(list_events(session))  # read first, then write: what deadlocks without BEGIN IMMEDIATE
                    add_event(session, "test", "counted", NOW, seen=n)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert failures == []
    with reading(database) as session:
        assert len(list_events(session)) == 40


def test_two_that_move_a_round_cannot_both_win(database: Engine):
    with transaction(database) as session:
        started = add_round(session, 0, {}, 0, NOW)
    with transaction(database) as session:
        set_state(session, started.id, RoundState.CREATED, RoundState.TRAINED)

    with pytest.raises(DatabaseError, match="no longer 'created'"), transaction(database) as session:
        set_state(session, started.id, RoundState.CREATED, RoundState.SCORED)

    with reading(database) as session:
        assert find_round(session, 0).state is RoundState.TRAINED


def test_times_come_back_in_utc_and_naive_ones_are_refused(database: Engine):
    east = dt.datetime(2026, 1, 2, 6, 4, 5, 123456, tzinfo=dt.timezone(dt.timedelta(hours=3)))
    with transaction(database) as session:
        add_round(session, 0, {}, 0, east)

    with reading(database) as session:
        assert find_round(session, 0).created_at == dt.datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=dt.UTC)
    with pytest.raises(Exception, match="without a zone"), transaction(database) as session:
        add_round(session, 1, {}, 0, dt.datetime(2026, 1, 2))


def test_a_bare_postgresql_url_gets_the_driver_that_the_extra_installs():
    assert connect("postgresql://ada@db/pets").url.drivername == "postgresql+psycopg"
    assert connect("postgres://ada@db/pets").url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize("url", ["no url", "postgresql+nonsense://ada:s3cret@db/pets", "smoke://ada:s3cret@db"])
def test_a_url_that_cannot_be_used_is_a_setting_to_mend_and_shows_no_password(url: str):
    with pytest.raises(ConfigError) as caught:
        connect(url)

    assert caught.value.hint
    assert "s3cret" not in str(caught.value)


def test_a_database_that_cannot_be_reached_is_named_without_its_password():
    database = connect("postgresql://ada:s3cret@127.0.0.1:1/pets")

    with pytest.raises(DatabaseError) as caught, reading(database) as session:
        count_pool(session)

    assert "127.0.0.1:1/pets" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    database = connect(f"sqlite:///{tmp_path / 'nowhere' / 'a.db'}")

    with pytest.raises(DatabaseError, match=r"nowhere.*cannot be opened"), transaction(database) as session:
        count_pool(session)


def test_a_file_that_changes_while_somebody_who_may_not_write_reads_it_is_to_be_tried_again(
    migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "looked at?.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    monkeypatch.setattr("alloop.store.session.may_write", lambda url: False)
    database = connect(sqlite_url(path))
    with reading(database) as session:
        assert session.execute(text("SELECT count(*) FROM workspace")).scalar_one() >= 0

    with (
        pytest.raises(TemporaryError, match=r"looked at\?\.db changed while it was read"),
        reading(database) as session,
    ):
        session.execute(text("SELECT count(*) FROM workspace")).scalar_one()
        with contextlib.closing(sqlite3.connect(path)) as writer:
            writer.execute("CREATE TABLE more (id INTEGER)")
            writer.commit()

    with pytest.raises(DatabaseError, match="is read-only"), transaction(database) as session:
        session.execute(text("CREATE TABLE even_more (id INTEGER)"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["looked at?.db"]


def test_a_full_disk_is_explained_where_sqlite_speaks_of_the_disk_only(tmp_path: Path):
    database = connect(sqlite_url(tmp_path / "alloop.db"))

    with pytest.raises(DatabaseError, match=r"disk I/O error\.\n.*Free some space"), transaction(database):
        raise OperationalError("SELECT 1", None, sqlite3.OperationalError("disk I/O error"))
