"""alloop: from a folder of unlabeled images to a classifier a team can trust.

`alloop.open(folder)` opens a workspace for programs, `alloop.open_exported(folder)` an exported model (alloop/api.py,
docs/python.md).
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alloop.api import QueryRow as QueryRow
    from alloop.api import ScoreRow as ScoreRow
    from alloop.api import Workspace as Workspace
    from alloop.api import open as open  # noqa: A004
    from alloop.api import open_exported as open_exported
    from alloop.errors import AlloopError as AlloopError
    from alloop.export.rows import LabelRow as LabelRow
    from alloop.export.table import Table as Table

__version__ = "0.1.0"

# Without it matrix products on CUDA may differ from run to run. cuBLAS reads it once, so it is set before torch loads.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Loaded at first use: `import alloop` takes milliseconds, and every command imports it.
_PLACES = {
    "open": "alloop.api",
    "open_exported": "alloop.api",
    "Workspace": "alloop.api",
    "QueryRow": "alloop.api",
    "ScoreRow": "alloop.api",
    "LabelRow": "alloop.export.rows",
    "Table": "alloop.export.table",
    "AlloopError": "alloop.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'alloop' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
