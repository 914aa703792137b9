"""Fixtures for all tests."""

import gc
import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import factories
import pytest
from alloop_process import forks as forks
from databases import database as database
from databases import every_sqlite_file_closed
from databases import migrated_postgres as migrated_postgres
from databases import migrated_sqlite as migrated_sqlite
from databases import new_database as new_database
from databases import new_url as new_url
from label_studio_server import installed_meanwhile
from label_studio_server import label_studio as label_studio  # a fixture; starts only when a test asks for it
from postgres_server import postgres_port as postgres_port
from quick import keep_files_in_memory, share_compiled_sql, share_onnx_operators

DATA = Path(os.environ.get("ALLOOP_DATA", Path(__file__).parents[2] / "shared" / "data"))

# In the background of a script Ctrl-C is ignored, and programs that a test starts would inherit that and never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# PyTorch and thousands of test functions live to the end: looking through them for garbage would take seconds.
gc.set_threshold(50_000, 20, 100)
keep_files_in_memory()
share_compiled_sql()


def _needs_label_studio(item: pytest.Item) -> bool:
    return item.get_closest_marker("label_studio") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests of the server last, because it may have to be installed first."""
    items.sort(key=_needs_label_studio)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    worker = getattr(session.config, "workerinput", {}).get("workerid", "gw0")  # one worker of pytest-xdist is enough
    if worker != "gw0" or not any(map(_needs_label_studio, session.items)):
        return (yield)
    with tempfile.TemporaryDirectory() as folder, installed_meanwhile(Path(folder)):
        return (yield)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real image sets; skip the test if there is none."""
    if not DATA.is_dir():
        pytest.skip(f"no real image sets at {DATA}; set ALLOOP_DATA")
    return DATA


@pytest.fixture(scope="session")
def onnx_operators() -> None:
    """Make ONNX files quick to write, for tests that write many."""
    share_onnx_operators()


@pytest.fixture(autouse=True)
def _fold_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give commands under test lines of unlimited length.

    Otherwise the length of the test's folder, and the terminal width that pytest-xdist gives to its workers, would
    decide where lines are folded.
    """
    monkeypatch.setenv("COLUMNS", "10000")


@pytest.fixture(autouse=True)
def _close_projects() -> Iterator[None]:
    """Close the projects that a test made. Everything else that opens a database has to close it."""
    outlive = len(factories.OPENED)
    with every_sqlite_file_closed():
        yield
        for project in factories.OPENED:
            project.close()
        del factories.OPENED[outlive:]
