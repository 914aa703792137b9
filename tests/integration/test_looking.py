"""Looking at a workspace without the right to write in it."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alloop_process import Forks
from command_line import alloop
from factories import make_project
from somebody_else import as_somebody_else, closed_to_others


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_project(tmp_path_factory.mktemp("made"), n=30)
    for _ in range(2):
        assert alloop("run", "-C", project.folder).code == 0
    project.close()
    project.folder.parent.chmod(0o755)  # the copies' pool is here
    return project.folder


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    """A copy of the workspace, in a folder where anybody may write."""
    shared = tmp_path / "shared"
    shutil.copytree(made, shared / "pets")
    shared.chmod(0o777)
    return shared / "pets"


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


LOOKS = {
    "status": ["status"],
    "report": ["report", "--out", "../report.html"],
    "csv": ["labels", "export", "../labels.csv"],
    "folders": ["labels", "export", "../tree"],
    "explain": ["explain", "0003.png"],
    "strategies": ["strategies"],
    "rounds": ["round", "list"],
    "round": ["round", "show", "0"],
    "pool": ["pool", "list"],
    "db check": ["db", "check"],
    "backup": ["db", "backup", "../copy.db"],
    "replay": ["replay", "1"],
    "predict": ["predict", "--pool", "--out", "../predicted.csv", "-q"],
}


def test_whoever_may_only_read_can_look_at_everything(forks: Forks, workspace: Path):
    # The pool's paths are those of the workspace that this one is a copy of.
    gone, changed = (
        Path(row["path"]) for row in alloop("pool", "list", "--unlabeled", "-C", workspace, "--json").data[:2]
    )
    saved = {path: path.read_bytes() for path in (gone, changed)}
    changed.write_bytes(saved[changed] + b"more")
    gone.unlink()
    before = listing(workspace)
    with closed_to_others(workspace):
        *looked, check, report, run = as_somebody_else(
            forks, workspace, *LOOKS.values(), ["pool", "check"], ["report"], ["run"]
        )

    for path, data in saved.items():
        path.write_bytes(data)
    found = dict(zip(LOOKS, looked, strict=True))
    assert {name: (done.code, done.err) for name, done in found.items() if done.code} == {}
    assert found["status"].out == alloop("status", "-C", workspace).out
    assert (workspace.parent / "report.html").stat().st_size > 1000
    assert len((workspace.parent / "labels.csv").read_text().splitlines()) > 10
    assert len([path for path in (workspace.parent / "tree").rglob("*") if path.is_symlink()]) > 10
    with contextlib.closing(sqlite3.connect(workspace.parent / "copy.db")) as copy:
        assert copy.execute("SELECT count(*) FROM image").fetchone() == (30,)
    lines = check.out.splitlines()
    assert lines[:2] == [f"missing\t{gone}", f"changed\t{changed}"]
    assert lines[2] == (
        "Nothing was recorded, because you have no permission to write in this workspace. Recorded state:"
    )
    assert lines[3].startswith("30 images, 0 of them missing")
    # What needs the right to write says so and names the way out.
    assert (report.code, run.code) == (1, 1)
    assert "alloop report --out ~/report.html" in report.err
    assert "is read-only" in run.err
    assert "Make the workspace writable" in run.err
    assert listing(workspace) == before


@contextlib.contextmanager
def a_writer_at_work(workspace: Path) -> Iterator[sqlite3.Connection]:
    """Somebody who has committed a change that is not in the file yet, only in its journal."""
    with contextlib.closing(sqlite3.connect(workspace / "alloop.db")) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("UPDATE image_location SET status = 'missing' WHERE path LIKE '%0003.png'")
        connection.commit()
        yield connection


def test_a_journal_is_read_with_the_file_or_the_database_is_refused(forks: Forks, workspace: Path):
    with a_writer_at_work(workspace):
        shutil.copytree(workspace, workspace.parent / "copy")  # as a writer leaves it that was killed
        (workspace.parent / "copy" / "alloop.db-shm").unlink()
        with closed_to_others(workspace), closed_to_others(workspace.parent / "copy"):
            assert (workspace / "alloop.db-wal").stat().st_size
            found, refused = as_somebody_else(forks, workspace, ["status", "--json"], ["status", "-C", "../copy"])

    assert found.code == 0, found.err
    assert [Path(path).name for path in found.data["missing"]] == ["0003.png"]
    assert refused.code == 1
    assert "has changes in a journal that SQLite has to write into it first, but you may not write there" in refused.err
    assert "`alloop status`" in refused.err
    assert len(alloop("status", "-C", workspace.parent / "copy", "--json").data["missing"]) == 1


def test_whoever_may_only_read_predicts_after_the_cache_was_deleted(forks: Forks, workspace: Path):
    assert list(workspace.glob("runs/*/model/nodes.npy"))  # the model needs its graph of the pool
    expected = workspace.parent / "expected.csv"
    assert alloop("predict", "--pool", "-o", expected, "-q", "-C", workspace).code == 0
    shutil.rmtree(workspace / "cache")
    before = listing(workspace)

    with closed_to_others(workspace):
        (found,) = as_somebody_else(forks, workspace, ["predict", "--pool", "--out", "../found.csv"])

    assert found.code == 0, found.err
    assert "kept in memory only" in found.err
    assert (workspace.parent / "found.csv").read_bytes() == expected.read_bytes()
    assert listing(workspace) == before
