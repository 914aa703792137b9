"""What every test may use."""

import os
from pathlib import Path

import pytest
from label_studio_server import label_studio as label_studio  # a fixture; starts nothing until a test asks for it

DATA = Path(os.environ.get("ALLOOP_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image sets; skips where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"no real image sets at {DATA}; set ALLOOP_DATA")
    return DATA
