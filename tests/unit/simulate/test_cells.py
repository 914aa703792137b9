"""Cells computed here and in other processes."""

import os
import subprocess
from pathlib import Path

import pytest

from alloop.engine.executor_local import LocalExecutor
from alloop.errors import AlloopError, WorkspaceError
from alloop.simulate.cells import Deadline, digest_of, read_cell_file, run_cells, scratch_folder


def _touch(path: Path) -> None:
    if path.name == "bad":
        raise ZeroDivisionError("of somebody else's strategy")
    if path.name == "refused":
        raise AlloopError("Too few labels.", "Label more.")
    path.write_text(str(os.getpid()))


def test_a_cell_that_fails_says_why_and_the_others_go_on(tmp_path: Path):
    plans = [tmp_path / name for name in ("one", "bad", "refused", "two")]

    done = dict(run_cells(plans, _touch, LocalExecutor(), 1, Deadline(None)))

    assert [done[plan] for plan in plans] == [
        None,
        "ZeroDivisionError: of somebody else's strategy",
        "Too few labels.",
        None,
    ]
    assert (tmp_path / "two").exists()


def test_several_jobs_compute_every_cell_in_other_processes(tmp_path: Path):
    plans = [tmp_path / name for name in ("one", "bad", "two")]

    done = dict(run_cells(plans, _touch, LocalExecutor(), 2, Deadline(None)))

    assert set(done) == set(plans)
    assert done[tmp_path / "bad"] is not None
    assert (tmp_path / "one").read_text() != str(os.getpid())


def test_nothing_is_begun_after_the_deadline(tmp_path: Path):
    assert list(run_cells([tmp_path / "one"], _touch, LocalExecutor(), 1, Deadline(0))) == []
    assert not (tmp_path / "one").exists()


def test_scratch_of_a_dead_process_is_removed_and_of_a_living_one_kept(tmp_path: Path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f".scratch-{pid}-abc").mkdir()

    with scratch_folder(tmp_path) as folder:
        assert folder.parent == tmp_path

    assert [path.name for path in tmp_path.iterdir()] == [f".scratch-{os.getpid()}-abc"]


def test_a_folder_that_only_looks_like_scratch_stays(tmp_path: Path):
    for name in (".scratch-old", ".scratch-anna2024-x", ".scratch-²-x"):
        (tmp_path / name).mkdir()

    with scratch_folder(tmp_path):
        pass

    assert {path.name for path in tmp_path.iterdir()} == {".scratch-old", ".scratch-anna2024-x", ".scratch-²-x"}


def test_a_damaged_cell_is_refused_with_what_to_do(tmp_path: Path):
    for text in ('{"a"', '"text"'):
        (tmp_path / "cell.json").write_text(text)

        with pytest.raises(WorkspaceError, match="damaged") as caught:
            read_cell_file(tmp_path / "cell.json", lambda data: data.items())

        assert "Remove the file" in caught.value.hint
    assert read_cell_file(tmp_path / "none.json", dict) is None


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
