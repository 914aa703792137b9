"""The workbench: time, user name, executor and lease reach every step as its first argument and in no other way."""

import ast
import dataclasses
import datetime as dt
import inspect
import pickle
from pathlib import Path

import pytest
from factories import NOW, at_bench, make_project, tools_of
from sqlalchemy import inspect as inspect_database
from sqlalchemy import text

import alloop.loop
from alloop.engine.executor_local import LocalExecutor
from alloop.engine.jobs import FeatureJob, ScoreJob, TrainJob
from alloop.errors import LeaseHeld
from alloop.executor import Job, Result
from alloop.loop.asking import people
from alloop.loop.intake.ingest import add_images
from alloop.loop.rounds import steps
from alloop.loop.rounds.runner import RunOptions, run
from alloop.loop.workbench import Workbench, open_workbench
from alloop.loop.writer import Lease, actor, writer
from alloop.progress import Progress, silent
from alloop.store.session import transaction
from alloop.store.workspace import drop_lease, take_lease

LOOP = Path(alloop.loop.__file__).parent


class Pickling(LocalExecutor):
    """Keeps each job as it would travel to another machine."""

    def __init__(self) -> None:
        self.sent: list[tuple[type, bytes]] = []

    def submit(self, job: Job[Result], progress: Progress = silent) -> Result:
        self.sent.append((type(job), pickle.dumps(job)))
        return super().submit(job, progress)


def test_a_job_carries_no_address_no_path_of_the_database_and_no_settings_of_the_labeling(tmp_path: Path):
    project = make_project(
        tmp_path,
        n=30,
        loop={"batch_size": 5},
        database={"url": f"sqlite:///{tmp_path}/hidden-database.db"},
        labeling__label_studio={"url": "http://hidden-host:8080", "api_key_file": "hidden-key"},
        evaluation={"holdout_size": 8, "holdout_share": 0.25, "matched_arm": True},
    )
    executor = Pickling()

    run(tools_of(project, executor=executor), RunOptions(rounds=2))

    assert {kind for kind, _ in executor.sent} == {TrainJob, ScoreJob, FeatureJob}
    assert not [kind for kind, sent in executor.sent if b"hidden" in sent]


def test_every_time_in_the_database_is_the_time_of_the_clock(tmp_path: Path):
    project = make_project(tmp_path, n=30, add=False, loop={"batch_size": 5})
    tools = tools_of(project, clock=lambda: NOW, user="ada@desk pid 1")
    before = dt.datetime(2026, 1, 3, tzinfo=dt.UTC)

    at_bench(tools, add_images, [str(project.folder / "photos")])
    run(tools, RunOptions(rounds=2))

    late = []
    with project.database.connect() as connection:
        for table in inspect_database(connection).get_table_names():
            for column in inspect_database(connection).get_columns(table):
                # People's answers have the time of the people; the workspace was made before the clock was set.
                if column["name"].endswith("_at") and column["name"] != "answered_at" and table != "workspace":
                    times = connection.execute(text(f"SELECT {column['name']} FROM {table}")).scalars()
                    late += [(table, column["name"], each) for each in times if each and str(each) > str(before)]
        events = connection.execute(text("SELECT kind, actor, at FROM event")).all()
    assert late == []
    ours = [event for event in events if event[0] != "database upgraded"]
    assert {event[1] for event in ours} == {"ada@desk pid 1"}
    assert {str(event[2])[:19] for event in ours} == {f"{NOW:%F %T}"}


def test_a_push_ends_when_another_alloop_has_taken_the_lease_of_its_bench(tmp_path: Path):
    project = make_project(tmp_path, n=20)
    with open_workbench(tools_of(project)) as bench:
        steps.start_round(bench)
        steps.train(bench, 0)
        steps.score(bench, 0)
        steps.select(bench, 0)
        with transaction(project.database) as session:
            drop_lease(session, bench.lease.holder)
            take_lease(session, "ben@lab pid 1", NOW, dt.datetime(2100, 1, 1, tzinfo=dt.UTC))

        with pytest.raises(LeaseHeld, match="taken over"):
            people.push(bench, 0)


def test_a_bench_has_the_lease_of_its_workspace_and_no_second_one_can_be_had(tmp_path: Path):
    project = make_project(tmp_path, n=4)

    with open_workbench(tools_of(project, user="ada@desk pid 1")) as bench:
        assert bench.lease.holder.startswith("ada@desk pid 1 #")
        with pytest.raises(LeaseHeld, match="ada@desk"), writer(project.database, actor()):
            pass


def test_a_step_takes_a_bench_first():
    named = (steps.start_round, steps.train, steps.score, steps.select, steps.close, people.push, people.pull)

    for step in named:
        first = next(iter(inspect.signature(step).parameters.values()))
        assert first.annotation is Workbench
        assert first.default is inspect.Parameter.empty
    assert {field.name: field.type for field in dataclasses.fields(Workbench)}["lease"] is Lease


def test_no_room_of_the_loop_asks_the_machine_for_time_or_user_or_makes_an_executor():
    found = []
    for file in sorted(LOOP.rglob("*.py")):
        if file.name in {"writer.py", "workbench.py", "workspace.py"}:
            continue
        names = {ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)}
        bad = {"dt.datetime.now", "datetime.now", "time.time", "getpass.getuser", "actor", "utc_now", "LocalExecutor"}
        found += [(file.name, name) for name in sorted(names & bad)]

    assert found == []
