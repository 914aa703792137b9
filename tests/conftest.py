"""What every test may use."""

import os
from pathlib import Path

import pytest
from databases import database as database
from databases import migrated_postgres as migrated_postgres
from databases import migrated_sqlite as migrated_sqlite
from databases import new_database as new_database
from databases import new_url as new_url
from label_studio_server import label_studio as label_studio  # a fixture; starts nothing until a test asks for it
from postgres_server import postgres_port as postgres_port

DATA = Path(os.environ.get("ALLOOP_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image sets; skips where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"no real image sets at {DATA}; set ALLOOP_DATA")
    return DATA
