"""alloop from Python: the workspace as an object."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from command_line import alloop as command
from factories import make_project, tools_of, write_settings

import alloop
from alloop.errors import ConfigError, ModelError, WorkspaceError
from alloop.export.formats import export_labels
from alloop.loop.rounds.runner import RunOptions, Stage, run
from alloop.project import Project
from alloop.report.gather import gather_status
from alloop.store.images import list_refs
from alloop.store.queries import list_queries
from alloop.store.session import reading

HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "pyarrow",
    "sqlalchemy",
    "alembic",
    "pydantic",
    "PIL",
    "label_studio_sdk",
)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A workspace with a model, scores and two answered rounds."""
    project = make_project(tmp_path_factory.mktemp("asked"), n=40)
    run(tools_of(project), RunOptions(rounds=2))
    return project


def python(program: str, *arguments: str | Path) -> object:
    """Run a program in a fresh Python and return the JSON that it prints."""
    ended = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_importing_alloop_loads_nothing_heavy():
    program = f"import alloop, json, sys; dir(alloop); print(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"

    assert python(program) == []


def test_reading_numbers_and_labels_needs_no_torch(asked: Project):
    program = """
import alloop, json, sys
with alloop.open(sys.argv[1]) as workspace:
    found = [workspace.status().pool.labeled, len(workspace.labels()), len(workspace.queries())]
print(json.dumps([found, "torch" in sys.modules]))
"""
    found, has_torch = python(program, asked.folder)

    with reading(asked.database) as session:
        n = len(list_queries(session))
    assert found == [n, n, n]
    assert not has_torch


def test_status_is_that_of_the_command(asked: Project):
    with alloop.open(asked.folder) as workspace:
        status = workspace.status()

    assert status == gather_status(asked)
    told = command("status", "--json", "-C", asked.folder).data
    assert [row["number"] for row in told["rounds"]] == [row.number for row in status.rounds] == [0, 1]
    assert told["pool"]["labeled"] == status.pool.labeled


def test_run_takes_the_steps_of_the_command(tmp_path: Path):
    project = make_project(tmp_path, n=40)
    told: list[str] = []
    workspace = alloop.open(project.folder)

    result = workspace.run(progress=lambda label, done, total: told.append(label))

    assert (result.stage, result.round_number) == (Stage.ADVANCED, 0)
    assert len(workspace.labels()) == result.answered == result.asked
    assert told
    with pytest.raises(alloop.AlloopError, match="No round has scores yet"):
        workspace.scores()
    with pytest.raises(ModelError, match="no model yet"):
        workspace.classifier()


def test_labels_are_those_of_the_export(asked: Project, tmp_path: Path):
    export_labels(asked, tmp_path / "labels.jsonl", "jsonl")
    labels = alloop.open(asked.folder).labels()

    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert labels.to_arrow().to_pylist() == rows
    assert [row.annotators for row in labels] == [("oracle-1",)] * len(rows)
    assert [row.sha256 for row in labels] == [row["sha256"] for row in rows]


def test_queries_of_a_round(asked: Project):
    workspace = alloop.open(asked.folder)
    rows = list(workspace.queries(1))

    with reading(asked.database) as session:
        stored = [query for query in list_queries(session) if query.round_number == 1]
        paths = {ref.sha256: ref.path for ref in list_refs(session)}
    assert [(row.rank, row.sha256, row.file) for row in rows] == [(q.rank, q.sha256, paths[q.sha256]) for q in stored]
    assert [row.settled_at for row in rows] == [query.settled_at for query in stored]
    assert {row.status for row in rows} == {"answered"}
    assert len(workspace.queries()) > len(rows)
    with pytest.raises(alloop.AlloopError, match="no round 9"):
        workspace.queries(9)


def test_scores_are_calibrated_probabilities(asked: Project):
    workspace = alloop.open(asked.folder)
    table = workspace.scores()
    row = table[0]

    assert set(row.probabilities) == {"cat", "dog"}
    assert sum(row.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert row.probability == max(row.probabilities.values()) == row.probabilities[row.predicted]
    assert {"least-confidence", "margin"} <= set(row.uncertainty)
    assert row.uncertainty["least-confidence"] == pytest.approx(1 - row.probability, abs=1e-5)
    assert table.to_arrow() == workspace.scores(1).to_arrow()
    assert table.columns[-2:] == ("p_cat", "p_dog")
    with pytest.raises(alloop.AlloopError, match="Round 0 has no scores"):
        workspace.scores(0)


def test_a_classifier_gives_the_numbers_of_the_scores(asked: Project):
    workspace = alloop.open(asked.folder)
    rows = list(workspace.scores())[:5]
    workspace.close()
    classifier = alloop.open(asked.folder).classifier(1)

    found = [batch.log_probs.exp() for batch in classifier.predict([row.file for row in rows])]

    assert [p for batch in found for p in batch[:, 0].tolist()] == pytest.approx(
        [row.probabilities["cat"] for row in rows], abs=1e-6
    )


# -- tables ----------------------------------------------------------------------------------------------------------


def test_a_table_is_a_sequence_of_rows(asked: Project):
    table = alloop.open(asked.folder).queries()
    rows = list(table)

    assert isinstance(table, alloop.Table)
    assert table[-1] == rows[-1]
    assert list(table[1:6:2]) == rows[1:6:2]
    assert rows[3] in table
    with pytest.raises(IndexError):
        table[len(table)]
    assert repr(table).startswith(f"<Table of {len(rows)} rows: round, file, sha256, ")


def test_a_table_becomes_a_data_frame(asked: Project):
    table = alloop.open(asked.folder).labels()

    frame = table.to_pandas()

    assert list(frame.columns) == list(table.columns)
    assert frame["label"].tolist() == [row.label for row in table]


def test_without_pandas_an_error_says_what_to_install(asked: Project, monkeypatch: pytest.MonkeyPatch):
    table = alloop.open(asked.folder).labels()
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(alloop.AlloopError, match="pip install pandas"):
        table.to_pandas()

    assert isinstance(table.to_arrow(), pa.Table)


# -- opening and closing -----------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_workspace_is_refused_at_once(tmp_path: Path):
    with pytest.raises(ConfigError):
        alloop.open(tmp_path)


@pytest.mark.parametrize(
    "use",
    [
        lambda workspace: workspace.status(),
        lambda workspace: workspace.labels(),
        lambda workspace: workspace.queries(),
        lambda workspace: workspace.scores(),
        lambda workspace: workspace.run(),
        lambda workspace: workspace.classifier(),
    ],
)
def test_a_closed_workspace_says_so(asked: Project, use: Callable[[alloop.Workspace], object]):
    with alloop.open(asked.folder) as workspace:
        pass

    with pytest.raises(WorkspaceError, match="is closed"):
        use(workspace)


def open_files(name: str) -> list[str]:
    links = (Path("/proc/self/fd") / number for number in map(str, range(256)))
    return [str(link.readlink()) for link in links if link.is_symlink() and name in str(link.readlink())]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux only")
def test_no_file_of_the_database_stays_open(tmp_path: Path):
    project = make_project(tmp_path, n=6)
    project.close()
    workspace = alloop.open(project.folder)

    workspace.status()
    workspace.labels()

    assert open_files(str(project.folder / "alloop.db")) == []


def test_edited_settings_count_from_the_next_call(tmp_path: Path):
    project = make_project(tmp_path, n=6)
    workspace = alloop.open(project.folder)
    assert workspace.status().classes == ("cat", "dog")

    write_settings(project, project={"classes": ["cat", "dog", "ant"]})

    assert workspace.status().classes == ("cat", "dog", "ant")


def test_threads_read_at_the_same_time(asked: Project):
    workspace = alloop.open(asked.folder)
    expected, found = len(workspace.labels()), []
    threads = [threading.Thread(target=lambda: found.append(len(workspace.labels()))) for _ in range(4)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [expected] * 4


def test_a_fork_and_an_event_loop_read_as_well(asked: Project):
    program = """
import alloop, asyncio, json, os, sys
workspace = alloop.open(sys.argv[1])
here = len(workspace.labels())
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, str(len(workspace.labels())).encode())
    os._exit(0)
os.wait()
async def read():
    return len(workspace.labels())
print(json.dumps([here, int(os.read(reader, 20)), asyncio.run(read())]))
"""
    counts = python(program, asked.folder)

    assert isinstance(counts, list)
    assert len(set(counts)) == 1
    assert counts[0] > 0
