"""Install another package's entry points, as pip would do."""

import importlib
from pathlib import Path

import pytest


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, entry_points: str) -> None:
    """Make entry points visible to this process.

    Args:
        folder: Empty folder for the package's metadata.
        entry_points: `[group]` and `name = module:object`, a line each.
    """
    metadata = folder / "toys-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points + "\n")
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
