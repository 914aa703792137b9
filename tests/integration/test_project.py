"""Whole projects from the command line, answered by the oracle: what is recorded agrees, and nothing is done twice."""

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import alloop
from factories import at_bench, make_project, tools_of, write_pool, write_settings
from sqlalchemy import Engine, text

from alloop.engine.score_file import read_scores
from alloop.files import sha256_of
from alloop.loop.intake.ingest import add_images
from alloop.loop.rounds.runner import RunOptions, Stage, run
from alloop.loop.workspace import backup_database
from alloop.loop.writer import actor, writer
from alloop.project import Project, open_project
from alloop.store.migrate import head_revision
from alloop.store.session import connect

TABLES = (
    "image",
    "image_location",
    "round",
    "model_version",
    "metric",
    "query",
    "task",
    "annotation",
    "label",
    "holdout_draw",
    "holdout_image",
    "selection",
    "agreement",
    "event",
)


def rows(project: Project, statement: str, **values: Any) -> list[Any]:
    with project.database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement), values)]


def value(project: Project, statement: str, **values: Any) -> Any:
    return rows(project, statement, **values)[0][0]


def snapshot(project: Project) -> Mapping[str, list[Any]]:
    """Everything in the database but the lease."""
    return {table: rows(project, f"SELECT * FROM {table} ORDER BY 1") for table in TABLES}


def run_all(project: Project, **options: Any) -> None:
    assert run(tools_of(project), RunOptions(rounds=None, **options)).stage is Stage.DONE


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """40 images, holdout 8, batches of 6 with half at random, until nothing is left to ask. Only to be read."""
    project = make_project(tmp_path_factory.mktemp("finished"), acquisition={"random_fraction": 0.5})
    while alloop("run", "-C", project.folder, "--json").data["stage"] != "done":
        pass
    return project


def test_every_round_asks_a_batch_until_nothing_is_left(finished: Project):
    asked = rows(
        finished, "SELECT r.number, q.reason, count(*) FROM query q JOIN round r ON r.id = q.round_id GROUP BY 1, 2"
    )

    batches = {number: {reason: n for at, reason, n in asked if at == number} for number in range(6)}
    assert batches[0] == {"holdout": 8, "seed": 3, "random": 3}
    for number in (1, 2, 3, 4):
        assert batches[number] == {"acquired": 3, "random": 3}
    assert sum(batches[5].values()) == 40 - 8 - 5 * 6
    assert value(finished, "SELECT count(*) FROM label") == 40
    assert rows(finished, "SELECT state, closed_because FROM round ORDER BY number DESC LIMIT 1") == [
        (
            "closed",
            "stopped: pool exhausted: every image is labeled, being asked, set aside, or a near copy of one that is",
        )
    ]


def test_every_query_says_why_by_what_and_how_likely(finished: Project):
    queries = rows(
        finished,
        "SELECT r.number, q.reason, q.strategy, q.rank, q.score, q.probability, q.predicted, q.confidence, q.status "
        "FROM query q JOIN round r ON r.id = q.round_id ORDER BY r.number, q.rank",
    )
    left = 32  # images of the train split that nobody was asked about yet
    for number in range(6):
        mine = [row for row in queries if row[0] == number]
        assert [row[3] for row in mine] == list(range(1, len(mine) + 1))
        n_random = sum(row[1] == "random" for row in mine)
        for _, reason, strategy, _, score, probability, predicted, confidence, status in mine:
            assert status == "answered"
            match reason:
                case "holdout":
                    assert (strategy, score, predicted, probability) == ("random", None, None, 8 / 40)
                case "seed":
                    assert (strategy, predicted, probability) == ("max-herding", None, None)
                    assert score is not None
                case "random":
                    assert (strategy, score) == ("random", None)
                    assert probability == pytest.approx(n_random / left)
                case "acquired":
                    assert (strategy, probability) == ("entropy-spread", None)
                    assert 0 <= score <= 1
            if number > 0 and reason in {"random", "acquired"}:
                assert predicted in {"cat", "dog"}
                assert 0 <= confidence <= 1
        left -= sum(row[1] != "holdout" for row in mine)
    assert left == 0


def test_the_strategy_asked_for_the_highest_entropies_that_chance_left(tmp_path: Path):
    project = make_project(
        tmp_path, acquisition={"strategy": "entropy", "random_fraction": 0.5}, loop={"max_rounds": 2}
    )
    run_all(project)
    scores = read_scores(project.folder / value(project, "SELECT scores_path FROM round WHERE number = 1"))
    entropy = dict(zip(scores.image_ids.tolist(), scores.entropy.tolist(), strict=True))
    chosen: dict[str, set[int]] = {"acquired": set(), "random": set()}
    for image_id, reason in rows(
        project, "SELECT image_id, reason FROM query JOIN round ON round.id = round_id WHERE number = 1"
    ):
        chosen[reason].add(image_id)

    rest = sorted(entropy.keys() - chosen["random"], key=lambda image_id: -entropy[image_id])

    assert len(chosen["acquired"]) == 3
    assert set(rest[:3]) == chosen["acquired"]


def test_the_holdout_is_labeled_measured_and_used_for_nothing_else(finished: Project):
    chosen = value(
        finished,
        "SELECT count(*) FROM query q JOIN image i ON i.id = q.image_id "
        "WHERE (i.split = 'holdout') <> (q.reason = 'holdout')",
    )
    assert chosen == 0
    in_scores = {
        image_id
        for (path,) in rows(finished, "SELECT scores_path FROM round WHERE scores_path IS NOT NULL")
        for image_id in read_scores(finished.folder / path).image_ids.tolist()
    }
    holdout = {image_id for (image_id,) in rows(finished, "SELECT id FROM image WHERE split = 'holdout'")}
    assert len(holdout) == 8
    assert not in_scores & holdout
    models = rows(
        finished, "SELECT number, n_labels, n_holdout FROM model_version m JOIN round r ON r.id = m.round_id ORDER BY 1"
    )
    assert models == [(1, 6, 8), (2, 12, 8), (3, 18, 8), (4, 24, 8), (5, 30, 8), (6, 32, 8)]
    # Each kind of heads is measured alone, too, on the same images.
    assert rows(finished, "SELECT DISTINCT split, n FROM metric WHERE name = 'accuracy' ORDER BY 1") == [
        ("holdout", 8), ("raw heads", 8), ("smoothed heads", 8),
    ]  # fmt: skip


def test_status_counts_what_is_in_the_database(finished: Project):
    status = alloop("status", "-C", finished.folder, "--json").data

    for split in ("train", "holdout", "excluded"):
        assert status["pool"][split] == value(finished, "SELECT count(*) FROM image WHERE split = :split", split=split)
    assert status["pool"]["images"] == value(finished, "SELECT count(*) FROM image")
    assert status["pool"]["labeled"] == value(finished, "SELECT count(*) FROM label")
    assert status["pool"]["open"] == value(finished, "SELECT count(*) FROM query WHERE status = 'open'")
    assert status["annotators"] == {"oracle-1": {"label": value(finished, "SELECT count(*) FROM annotation")}}
    for split, key in (("train", "class_counts"), ("holdout", "class_counts_holdout")):
        counted = rows(
            finished,
            "SELECT class_name, count(*) FROM label JOIN image ON image.id = image_id WHERE split = :split GROUP BY 1",
            split=split,
        )
        assert status[key] == dict(counted)
    for shown in status["rounds"]:
        counted = rows(
            finished,
            "SELECT status, count(*) FROM query JOIN round ON round.id = round_id WHERE number = :number GROUP BY 1",
            number=shown["number"],
        )
        assert shown["queries"] == dict(counted)
        metrics = rows(
            finished,
            "SELECT k.name, k.value, k.low, k.high FROM metric k JOIN model_version m ON m.id = k.model_version_id "
            "JOIN round r ON r.id = m.round_id WHERE r.number = :number AND k.split = 'holdout'",
            number=shown["number"],
        )
        assert {name: (m["value"], m["low"], m["high"]) for name, m in shown["metrics"].items()} == {
            name: tuple(numbers) for name, *numbers in metrics
        }


def test_a_model_version_says_what_it_was_made_from(finished: Project):
    model = rows(
        finished, "SELECT name, path, sha256, classes, seed, config, library_versions, label_digest FROM model_version"
    )[-1]
    name, path, sha256, classes, seed, config, versions, digest = model

    assert sha256_of(finished.folder / path / "model.json") == sha256
    assert name == f"r6-{sha256[:8]}"
    assert json.loads(classes) == ["cat", "dog"]
    assert seed > 0
    assert json.loads(config)["loop"]["batch_size"] == 6
    assert "database" not in json.loads(config)
    assert {"python", "torch", "numpy"} <= json.loads(versions).keys()
    assert len(digest) == 64


def test_a_project_that_is_done_stays_as_it_is(finished: Project):
    before = snapshot(finished)

    again = alloop("run", "-C", finished.folder, "--json")

    assert again.code == 0
    assert again.data["stage"] == "done"
    assert snapshot(finished) == before


def test_the_words_of_a_project_that_is_done(finished: Project):
    assert alloop("run", "-C", finished.folder).out == (
        "Done: pool exhausted: every image is labeled, being asked, set aside, or a near copy of one that is "
        "(round 6, 40 labels).\n"
    )
    shown = alloop("status", "-v", "-C", finished.folder).out
    assert "pets: round 6 is closed. 40 images, 40 labeled: 32 to train on, 8 of 8 in the holdout." in shown
    assert "40 of the 40 images are different; 0 are being asked about." in shown
    assert "oracle-1: 40 labels" in shown
    listed = alloop("round", "list", "-C", finished.folder).out.splitlines()
    assert listed[0].split("\t") == ["0", "closed", "14 of 14 answered", "14 of 14 images answered"]
    assert len(alloop("round", "show", "1", "-C", finished.folder).out.splitlines()) == 7


def test_quiet_says_nothing_and_json_nothing_else(finished: Project):
    quiet = alloop("status", "-C", finished.folder, "-q", "--json")
    assert quiet.data["name"] == "pets"
    assert quiet.err == ""
    assert alloop("run", "-C", finished.folder, "-q").out == ""


def test_evaluating_again_gives_the_same_numbers(finished: Project):
    before = rows(
        finished,
        "SELECT name, value, low, high FROM metric "
        "WHERE split = 'holdout' AND model_version_id = (SELECT max(id) FROM model_version)",
    )

    shown = alloop("evaluate", "-C", finished.folder, "--json").data

    assert shown["model"].startswith("r6-")
    after = {name: (value, low, high) for name, value, low, high in before}
    for name, metric in shown["metrics"].items():
        assert (metric["value"], metric["low"], metric["high"]) == pytest.approx(after[name], abs=1e-5)
        assert metric["n"] == 8


def outcome(project: Project) -> tuple[list[Any], list[Any]]:
    """Return the questions in their order with their reasons, and all models, without row ids."""
    queries = rows(
        project,
        "SELECT r.number, q.rank, i.sha256, q.reason, q.score, q.probability, q.predicted FROM query q "
        "JOIN image i ON i.id = q.image_id JOIN round r ON r.id = q.round_id ORDER BY 1, 2",
    )
    models = rows(
        project,
        "SELECT r.number, m.sha256, m.label_digest FROM model_version m JOIN round r ON r.id = m.round_id ORDER BY 1",
    )
    return queries, models


def test_the_same_seed_asks_the_same_and_learns_the_same_bytes_whatever_the_order(tmp_path: Path):
    one, other = make_project(tmp_path / "a", n=30), make_project(tmp_path / "b", n=30, add=False)
    for path in sorted((other.folder / "photos").iterdir(), reverse=True):
        at_bench(other, add_images, [str(path)])

    for project in (one, other):
        run_all(project)

    assert outcome(one) == outcome(other)
    assert len(outcome(one)[1]) >= 3
    assert (one.folder / "runs/round-0001/model/model.json").read_bytes() == (
        other.folder / "runs/round-0001/model/model.json"
    ).read_bytes()


def test_another_seed_asks_something_else(tmp_path: Path):
    one = make_project(tmp_path / "a", n=30, loop={"max_rounds": 1})
    other = make_project(tmp_path / "b", n=30, loop={"max_rounds": 1}, project={"seed": 8})

    for project in (one, other):
        run_all(project)

    assert outcome(one)[0] != outcome(other)[0]


def test_a_label_budget_is_kept_and_the_last_model_uses_every_label(tmp_path: Path):
    project = make_project(tmp_path, loop={"label_budget": 23})

    run_all(project)

    assert value(project, "SELECT count(*) FROM label") == 23
    assert value(project, "SELECT count(*) FROM query") == 23
    last = rows(project, "SELECT n_labels, n_holdout FROM model_version ORDER BY id DESC LIMIT 1")
    assert last == [(15, 8)]
    assert "label budget reached: 23 of 23 labels" in alloop("run", "-C", project.folder).out


def test_a_budget_that_the_holdout_eats_up_is_refused(tmp_path: Path):
    project = make_project(tmp_path, loop={"label_budget": 8})

    refused = alloop("run", "-C", project.folder)

    assert refused.code == 2
    assert "label_budget = 8 leaves no label to train on: the holdout alone takes 8" in refused.err
    assert value(project, "SELECT count(*) FROM round") == 0
    assert value(project, "SELECT count(*) FROM image WHERE split = 'holdout'") == 0


def test_a_round_limit_is_kept_and_lifting_it_goes_on(tmp_path: Path):
    project = make_project(tmp_path, loop={"max_rounds": 2})
    run_all(project)
    assert value(project, "SELECT count(DISTINCT round_id) FROM query") == 2
    assert rows(project, "SELECT n_labels FROM model_version ORDER BY id DESC LIMIT 1") == [(12,)]

    run_all(write_settings(project, loop={"max_rounds": 3}))

    assert value(project, "SELECT count(DISTINCT round_id) FROM query") == 3


def test_new_images_after_the_end_are_asked_about(tmp_path: Path):
    project = make_project(tmp_path, n=20)
    run_all(project)
    holdout = rows(project, "SELECT id FROM image WHERE split = 'holdout'")
    write_pool(project.folder / "more", 6, first=500)
    assert alloop("pool", "add", project.folder / "more", "-C", project.folder, "--json").data["new"] == 6

    run_all(project)

    assert value(project, "SELECT count(*) FROM label") == 26
    assert rows(project, "SELECT id FROM image WHERE split = 'holdout'") == holdout


def test_each_step_is_a_command_and_refuses_to_be_out_of_turn(tmp_path: Path):
    project = make_project(tmp_path)
    at = ("-C", project.folder, "--json")

    assert "No round is under way" in alloop("score", *at).err
    assert alloop("train", *at).data == {"round": 0, "model": None}
    assert "'trained', but this step needs it to be 'scored'" in alloop("select", *at).err
    assert alloop("score", *at).data == {"round": 0, "scores": None}
    assert alloop("select", *at).data["queries"] == 14
    assert "'selected'" in alloop("train", *at).err
    assert alloop("push", *at).data == {"round": 0, "tasks": 14}
    assert alloop("push", *at).data == {"round": 0, "tasks": 0}
    assert alloop("pull", *at).data["new"] == 14
    assert alloop("pull", *at).data["new"] == 0
    assert alloop("round", "close", *at).data == {"round": 0, "withdrawn": 0}
    assert "closed already" in alloop("round", "close", "0", *at).err

    assert alloop("train", *at, "--device", "cpu").data["labels"] == 6
    assert alloop("train", *at).data["labels"] == 6
    assert alloop("score", *at).data["scores"] == str(project.paths.scores(1))
    chosen = {"round": 1, "queries": 3, "strategy": "entropy", "notes": []}
    assert alloop("select", *at, "-n", "3", "--strategy", "entropy").data == chosen
    assert alloop("evaluate", *at).data["metrics"]["accuracy"]["n"] == 8
    assert alloop("round", "show", "1", *at).data["round"]["state"] == "selected"
    finished = alloop("run", *at)
    assert (finished.data["stage"], finished.data["round_number"]) == ("advanced", 1)
    assert alloop("train", *at).data["round"] == 2


def test_training_again_before_the_choice_makes_scores_of_the_old_model_void(tmp_path: Path):
    project = make_project(tmp_path)
    at = ("-C", project.folder, "--json")
    alloop("run", *at)
    for step in ("train", "score"):
        assert alloop(step, *at).code == 0

    assert alloop("train", *at).code == 0

    assert rows(project, "SELECT state, scores_path FROM round WHERE number = 1") == [("trained", None)]
    assert value(project, "SELECT count(*) FROM model_version") == 1
    assert alloop("select", *at).code == 1
    assert alloop("score", *at).code == 0
    assert alloop("select", *at).code == 0


def test_a_device_that_is_not_there_is_named(tmp_path: Path):
    project = make_project(tmp_path)
    alloop("run", "-C", project.folder)

    refused = alloop("run", "-C", project.folder, "--device", "nonsense")

    assert refused.code in {1, 2}
    assert "nonsense" in refused.err
    assert alloop("run", "-C", project.folder, "--device", "cpu").code == 0


def test_the_whole_loop_runs_on_postgresql_as_on_sqlite(tmp_path: Path, postgres_port: int):
    from databases import _postgres_admin, postgres_url

    _postgres_admin(postgres_port, "CREATE DATABASE whole_loop")
    url = postgres_url(postgres_port, "whole_loop")
    on_postgres = make_project(tmp_path / "a", n=24, database={"url": url})
    on_sqlite = make_project(tmp_path / "b", n=24)

    for project in (on_postgres, on_sqlite):
        run_all(project)

    assert outcome(on_postgres) == outcome(on_sqlite)
    assert not (on_postgres.folder / "alloop.db").exists()
    status = alloop("status", "-C", on_postgres.folder, "--json").data
    assert status["pool"] == alloop("status", "-C", on_sqlite.folder, "--json").data["pool"]
    assert alloop("db", "check", "-C", on_postgres.folder).code == 0
    assert "pg_dump" in alloop("db", "backup", "-C", on_postgres.folder).err
    on_postgres.database.dispose()


def test_a_database_says_whether_it_is_sound_and_can_be_copied_while_open(tmp_path: Path):
    project = make_project(tmp_path, n=20)
    run_all(project)

    schema = head_revision()
    assert alloop("db", "check", "-C", project.folder, "--json").data == {"schema": schema, "sound": True}
    assert alloop("db", "upgrade", "-C", project.folder).out == f"The database already has schema {schema}.\n"
    copied = Path(alloop("db", "backup", "-C", project.folder, "--json").data["backup"])
    assert copied.parent == project.folder / "backups"
    target = tmp_path / "copy.db"
    assert alloop("db", "backup", target, "-C", project.folder).code == 0
    assert "never overwritten" in alloop("db", "backup", target, "-C", project.folder).err

    copy: Engine = connect(f"sqlite:///{target}")
    with copy.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM label")).scalar_one() == 20
    copy.dispose()


def test_a_damaged_database_is_found(tmp_path: Path):
    project = make_project(tmp_path, n=20)
    with project.database.begin() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
    with project.database.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql("UPDATE near_duplicate SET group_id = 999 WHERE image_id = 1")
    project.database.dispose()

    found = alloop("db", "check", "-C", project.folder)

    assert found.code == 1
    assert "a row of near_duplicate points nowhere" in found.err
    assert "backup" in found.err


def test_a_workspace_can_be_moved(tmp_path: Path):
    project = make_project(tmp_path, n=20)
    for _ in range(2):
        alloop("run", "-C", project.folder)
    project.database.dispose()
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "pets"
    project.folder.rename(moved)

    # All images of a folder are gone at once, as if a disk were not mounted.
    assert alloop("pool", "check", "-C", moved).code == 75
    assert alloop("pool", "add", moved / "photos", "-C", moved, "--json").data["known"] == 20
    # The oracle names files by their old places; their names are unique.
    assert alloop("run", "-C", moved, "--json").code == 0
    with open_project(moved, {}) as project:
        run_all(project)
        assert value(project, "SELECT count(*) FROM label") == 20


def test_fifty_workspaces_opened_and_closed_leave_no_file_open(tmp_path: Path):
    project = make_project(tmp_path, n=4)
    project.close()

    def once(number: int) -> None:
        with open_project(project.folder, {}) as opened, writer(opened.database, actor()):
            backup_database(opened, tmp_path / f"{number}.db")
        assert alloop("status", "-C", project.folder).code == 0
        assert alloop("pool", "add", tmp_path / "nowhere", "-C", project.folder).code != 0  # errors close it, too

    once(0)
    gc.collect()
    gc.disable()  # what is closed only when memory is collected is open for as long as nobody collects it
    try:
        before = open_files()
        for number in range(1, 51):
            once(number)
        assert open_files() == before
    finally:
        gc.enable()


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))
