"""Files that are whole or absent: temporary name, flush, rename. And the checksums that prove it."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alloop.errors import WorkspaceError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def explain_os_error(error: OSError, path: Path) -> WorkspaceError:
    """The same failure, in words a user can act on."""
    if error.errno in _NO_SPACE:
        return WorkspaceError(f"The disk is full: {path} could not be written.", "Free some space and run it again.")
    if error.errno in _READ_ONLY:
        return WorkspaceError(
            f"{path} cannot be written: {error.strerror}.", "Make the workspace writable, or copy it elsewhere."
        )
    return WorkspaceError(f"{path} could not be written: {error.strerror or error}.")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and takes the name `path`.

    On any failure the temporary file is removed and whatever was at `path` stays as it was.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise explain_os_error(error, path) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read; the user's umask is what applies to ordinary files.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def from_folder(folder: Path, path: Path | str) -> Path:
    """An absolute path; a relative one counts from `folder`, and `~` is the home folder."""
    return Path(os.path.abspath(folder / Path(path).expanduser()))  # noqa: PTH100 - Path.absolute keeps `..`


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or leave the old one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is stable to the byte for equal values: sorted keys, no NaN."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
