"""What makes tests quick without changing what they test: files in memory, and what is compiled or listed once."""

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.util import LRUCache

_MEMORY = Path("/dev/shm")
_ENOUGH = 2 << 30  # bytes; a whole run of the tests takes a tenth


def keep_files_in_memory() -> None:
    """Make temporary files in memory, where a flush takes no time. Each commit waits for several.

    A user's TMPDIR is kept, and so is the default where memory is scarce or programs in it may not be run.
    """
    if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK):
        return
    found = os.statvfs(_MEMORY)
    if found.f_bavail * found.f_frsize >= _ENOUGH and not found.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)


def share_compiled_sql() -> None:
    """Let all SQLite databases of this process share their compiled statements.

    Each engine has a cache of its own, and each command and each test opens an engine. The statements' keys contain
    the dialect; those of pysqlite are made with the same options everywhere.
    """
    shared: Any = LRUCache(2000)
    make = Engine.__init__

    def make_sharing(self: Engine, pool: Any, dialect: Any, *args: Any, **options: Any) -> None:
        make(self, pool, dialect, *args, **options)
        if type(dialect) is SQLiteDialect_pysqlite:
            self._compiled_cache = shared

    Engine.__init__ = make_sharing  # type: ignore[method-assign]
    SQLiteDialect_pysqlite.__eq__ = lambda self, other: type(self) is type(other)  # type: ignore[method-assign]
    SQLiteDialect_pysqlite.__hash__ = lambda self: hash(type(self))  # type: ignore[method-assign]


def share_onnx_operators() -> None:
    """List the operators that ONNX files are written with once in this process, not for each file that is written."""
    from torch.onnx._internal.exporter import _registration

    apis: Any = _registration.onnxscript_apis
    if not hasattr(apis.get_torchlib_ops, "cache_info"):
        apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
