"""From nothing, or an older schema, to the one this alloop works with; never from a newer one."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Engine, inspect, text

from alloop.errors import DatabaseError
from alloop.records import Agreement, Ending
from alloop.store.holdout import list_grown, list_probabilities
from alloop.store.migrate import (
    current_revision,
    head_revision,
    list_revisions,
    migrations_folder,
    require_current,
    upgrade,
)
from alloop.store.rounds import list_agreements, list_rounds
from alloop.store.selections import list_selections
from alloop.store.session import connect, reading, transaction
from alloop.store.tables import TableBase

SCHEMAS = Path(__file__).parents[2] / "assets" / "schemas"


def ignore_expression_index(obj: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    # SQLite cannot reflect an index over an expression; a test of its own looks for it.
    return not (kind == "index" and name == "uq_round_unclosed")


# SQLAlchemy, and then Alembic, on the index that `ignore_expression_index` is about
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index uq_round_unclosed")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_the_migrations_make_what_the_tables_say(database: Engine):
    with database.connect() as connection:
        options = {"compare_type": True, "include_object": ignore_expression_index}
        context = MigrationContext.configure(connection, opts=options)

        assert compare_metadata(context, TableBase.metadata) == []


# SQLAlchemy, on the index that `ignore_expression_index` is about; this is about constraints
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index uq_round_unclosed")
def test_check_constraints_are_those_of_the_tables(database: Engine):
    """Alembic does not compare check constraints."""
    inspector = inspect(database)
    wanted = {
        (table.name, str(constraint.name))
        for table in TableBase.metadata.sorted_tables
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }

    found = {
        (table, str(check["name"]))
        for table in TableBase.metadata.tables
        for check in inspector.get_check_constraints(table)
    }

    assert found == wanted
    assert len(wanted) >= 12


def test_the_index_over_an_expression_is_there(database: Engine):
    tables = {"sqlite": "sqlite_master WHERE name", "postgresql": "pg_indexes WHERE indexname"}
    with reading(database) as session:
        found = session.execute(
            text(f"SELECT count(*) FROM {tables[database.url.get_backend_name()]} = 'uq_round_unclosed'")
        )

        assert found.scalar_one() == 1


def test_an_empty_database_is_refused_and_then_upgraded(new_database: Engine):
    assert current_revision(new_database) is None
    with pytest.raises(DatabaseError, match="is empty") as caught:
        require_current(new_database)
    assert "alloop db upgrade" in caught.value.hint

    upgrade(new_database)

    assert current_revision(new_database) == head_revision()
    require_current(new_database)
    assert set(inspect(new_database).get_table_names()) == {*TableBase.metadata.tables, "alembic_version"}


def test_the_migrations_are_read_as_alembic_reads_them():
    scripts = ScriptDirectory(str(migrations_folder()))

    assert dict(list_revisions(migrations_folder())) == {
        script.revision: script.down_revision for script in scripts.walk_revisions()
    }
    assert head_revision() == scripts.get_current_head()


def test_upgrading_twice_changes_nothing(database: Engine):
    with transaction(database) as session:
        session.execute(text("INSERT INTO workspace (id, uuid, created_at) VALUES (1, 'mine', '2026-01-01 00:00:00')"))

    upgrade(database)

    with reading(database) as session:
        assert session.execute(text("SELECT uuid FROM workspace")).scalar_one() == "mine"


def test_a_database_of_a_newer_alloop_is_left_alone(database: Engine):
    with transaction(database) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    for refuse in (require_current, upgrade):
        with pytest.raises(DatabaseError, match="schema 9999") as caught:
            refuse(database)
        assert "Upgrade" in caught.value.hint
        assert "alloop" in caught.value.hint
    assert current_revision(database) == "9999"


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(new_database: Engine):
    with transaction(new_database) as session:
        session.execute(text("CREATE TABLE task (id INTEGER)"))  # in the way of ours

    with pytest.raises(Exception, match="task"):
        upgrade(new_database)

    assert inspect(new_database).get_table_names() == ["task"]


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.db")), ids=lambda path: path.stem)
def test_a_database_of_every_released_schema_can_be_upgraded_and_used(path: Path, tmp_path: Path):
    """Each file was made by the alloop of its schema: one round over eight images, all answered (README there)."""
    from alloop.store.annotations import list_labels
    from alloop.store.images import count_pool
    from alloop.store.queries import list_queries
    from alloop.store.rounds import find_last_round, find_model, list_rounds

    copied = tmp_path / "alloop.db"
    shutil.copyfile(path, copied)
    database = connect(f"sqlite:///{copied}")

    upgrade(database)

    require_current(database)
    with reading(database) as session:
        assert count_pool(session).images == 8
        assert [found.number for found in list_rounds(session)] == [0, 1]
        assert len(list_queries(session)) == len(list_labels(session)) == 8
        assert not any(query.suspect for query in list_queries(session))
        last = find_last_round(session)
        assert last is not None
        model = find_model(session, last.id)
        assert model is not None
        assert model.classes == ("cat", "dog")
        assert session.execute(text("PRAGMA foreign_key_check")).first() is None
    database.dispose()


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.db")), ids=lambda path: path.stem)
def test_facts_of_every_released_schema_are_carried_over(path: Path, tmp_path: Path):
    copied = tmp_path / "alloop.db"
    shutil.copyfile(path, copied)
    database = connect(f"sqlite:///{copied}")

    upgrade(database)

    with reading(database) as session:
        holdout = set(session.scalars(text("SELECT id FROM image WHERE split = 'holdout'")))
        rounds = list_rounds(session)
        assert [found.ending for found in rounds] == [Ending.ANSWERED, Ending.POOL_EXHAUSTED]
        assert (list_probabilities(session), list_grown(session)) == (dict.fromkeys(holdout, 2 / 8), set())
        selections = list_selections(session)
        assert list(selections) == [0]
        n_events = session.execute(text("SELECT count(*) FROM event")).scalar_one()
    chosen = selections[0]
    if path.stem < "0004":
        assert (chosen.strategy, chosen.notes, chosen.n, chosen.settings) == ("entropy", (), None, None)
        assert rounds[1].matched is None
    else:
        assert (chosen.strategy, chosen.n) == ("max-herding", 6)
        assert "max-herding" in chosen.notes[0]
        assert (chosen.settings or {})["strategy"] == "entropy-spread"
        assert "numpy" in (chosen.library_versions or {})
        assert (rounds[1].matched or {})["skipped"] is True
    assert (chosen.path is None) == (path.stem < "0007")
    assert n_events >= 12
    database.dispose()


def upgrade_to(database: Engine, revision: str) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", str(migrations_folder()))
    with transaction(database) as session:
        config.attributes["connection"] = session.connection()
        command.upgrade(config, revision)


def add_log(database: Engine, events: list[tuple[str, int, Any]], endings: list[str], splits: list[str]) -> None:
    """Fill a database of schema 0006: images with these splits, closed rounds, and the log."""
    with transaction(database) as session:
        for image_id, split in enumerate(splits, start=1):
            session.execute(
                text(
                    "INSERT INTO image (id, sha256, split, width, height, format, mode, phash, added_at) VALUES "
                    f"({image_id}, '{image_id:064d}', '{split}', 8, 8, 'PNG', 'L', '0', '2026-01-01 00:00:00')"
                )
            )
        for number, because in enumerate(endings):
            session.execute(
                text(
                    "INSERT INTO round (id, number, state, config, seed, created_at, closed_because) VALUES "
                    f"({number + 11}, {number}, 'closed', '{{}}', 0, '2026-01-01 00:00:00', '{because}')"
                )
            )
        for kind, number, data in events:
            session.execute(
                text(
                    "INSERT INTO event (at, actor, kind, round_number, data) VALUES "
                    "('2026-01-01 00:00:00', 'ada', :kind, :number, CAST(:data AS JSON))"
                    if database.url.get_backend_name() == "postgresql"
                    else "INSERT INTO event (at, actor, kind, round_number, data) VALUES "
                    "('2026-01-01 00:00:00', 'ada', :kind, :number, :data)"
                ),
                {"kind": kind, "number": number, "data": json.dumps(data)},
            )


def test_facts_of_the_log_become_rows(new_database: Engine):
    upgrade_to(new_database, "0006")
    matched = {"skipped": False, "gain": {"value": 0.1, "n": 3}, "says": "No evidence yet"}
    events = [
        ("holdout drawn", 0, {"images": 1, "groups": 3}),  # undone by the next one
        ("holdout drawn", 0, {"images": 2, "groups": 8}),
        ("selected", 0, {"strategy": "random", "notes": ["first"]}),
        ("selected", 0, {"strategy": "margin", "notes": ["second"], "given": {"n": 4}, "versions": {"numpy": "2"}}),
        ("scored", 0, {"agreement": None}),
        ("holdout grown", 1, {"images": [3], "groups": 5}),
        ("matched arms", 1, {"skipped": True, "says": "Not compared"}),
        ("matched arms", 1, matched),
        ("scored", 1, {"agreement": {"round": 1, "before": 0, "share": 0.75, "n": 4}}),
        ("scored", 1, {"agreement": {"round": 1, "before": 0, "share": 0.5, "n": 4}}),
    ]
    endings = {
        "3 of 4 images answered; 1 skipped": Ending.ANSWERED,
        "closed by hand": Ending.BY_HAND,
        "stopped: label budget reached: 8 of 8 labels": Ending.LABEL_BUDGET,
        "stopped: round limit reached: 4 of 4 rounds": Ending.ROUND_LIMIT,
        "stopped: pool exhausted: every image is labeled": Ending.POOL_EXHAUSTED,
        "stopped: target accuracy reached: accuracy 90 %": Ending.TARGET_ACCURACY,
        "stopped: learning curve flat: twice the labels": Ending.CURVE_FLAT,
        "stopped: predictions stable: 99 %": Ending.STABLE,
        "stopped: no image could be asked about": Ending.NOTHING_TO_ASK,
    }
    add_log(new_database, events, list(endings), ["holdout", "holdout", "holdout", "train", "excluded"])

    upgrade(new_database)

    with reading(new_database) as session:
        assert list_probabilities(session) == {1: 2 / 8, 2: 2 / 8, 3: 1 / 5}
        assert list_grown(session) == {3}
        assert list_agreements(session) == [Agreement(1, 0, 0.5, 4)]
        found = list_rounds(session)
        assert [row.ending for row in found] == list(endings.values())
        assert [row.matched for row in found[:3]] == [None, matched, None]
        (chosen,) = list_selections(session).values()
        assert (chosen.strategy, chosen.notes, chosen.n, chosen.settings) == ("margin", ("second",), 4, None)
        assert (chosen.library_versions, chosen.path) == ({"numpy": "2"}, None)
        assert session.execute(text("SELECT count(*) FROM round WHERE matched IS NOT NULL")).scalar_one() == 1
        assert session.execute(text("SELECT count(*) FROM event")).scalar_one() == len(events)


def test_a_test_set_that_replaced_a_drawn_holdout_was_not_drawn(new_database: Engine):
    upgrade_to(new_database, "0006")
    events = [("holdout drawn", 0, {"images": 2, "groups": 8}), ("test set added", 0, {"images": 1})]
    add_log(new_database, events, ["closed by hand"], ["holdout", "train"])

    upgrade(new_database)

    with reading(new_database) as session:
        assert list_probabilities(session) == {}


def test_there_is_a_database_of_every_schema():
    revisions = {
        path.stem.split("_")[0] for path in (Path(__file__).parents[3] / "migrations" / "versions").glob("[0-9]*.py")
    }

    assert {path.stem for path in SCHEMAS.glob("*.db")} >= revisions


def test_the_database_of_a_schema_was_made_by_its_last_migration(migrated_sqlite: Path):
    """A migration that is edited after its database was made would be tested against the wrong tables."""

    def schema(path: Path) -> dict[str, str]:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {name: " ".join(sql.split()) for name, sql in rows}

    assert schema(SCHEMAS / f"{head_revision()}.db") == schema(migrated_sqlite)
