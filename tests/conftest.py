"""What every test may use."""

import os
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
from label_studio_server import label_studio as label_studio  # a fixture; starts nothing until a test asks for it
from postgres_server import postgres_port as postgres_port

DATA = Path(os.environ.get("ALLOOP_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _needs_label_studio(item: pytest.Item) -> bool:
    return item.get_closest_marker("label_studio") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the server come last: it may have to be installed first."""
    items.sort(key=_needs_label_studio)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    worker = getattr(session.config, "workerinput", {}).get("workerid", "gw0")  # of pytest-xdist; one is enough
    if worker != "gw0" or not any(map(_needs_label_studio, session.items)):
        return (yield)
    with tempfile.TemporaryDirectory() as folder, installed_meanwhile(Path(folder)):
        return (yield)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image sets; skips where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"no real image sets at {DATA}; set ALLOOP_DATA")
    return DATA


@pytest.fixture(autouse=True)
def _fold_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give commands under test an endless line.

    Otherwise lines would be folded by the length of the test's folder, and by the width of a terminal that
    pytest-xdist gives to its workers.
    """
    monkeypatch.setenv("COLUMNS", "10000")


@pytest.fixture(autouse=True)
def _close_projects() -> Iterator[None]:
    """Projects that a test made it need not close; whatever else opens a database closes it."""
    outlive = len(factories.OPENED)
    with every_sqlite_file_closed():
        yield
        for project in factories.OPENED:
            project.close()
        del factories.OPENED[outlive:]
