"""Atomic writing of files and folders (temporary name, flush, rename), and checksums of files."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alloop.errors import AlloopError, WorkspaceError

STDOUT = Path("/dev/stdout")
OUTPUT_MARK = ".alloop-output"  # marks folders of results: their pictures must not become images of the pool
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_NAME = 40  # characters of the name that a temporary name repeats; file systems refuse names of more than 255 bytes


def explain_os_error(error: OSError, path: Path) -> WorkspaceError:
    """Return an error that tells a user what to do about the failure."""
    if error.errno in _NO_SPACE:
        return WorkspaceError(
            f"The disk is full: {path} could not be written.", "Free some space and run the command again."
        )
    if error.errno in _READ_ONLY:
        return WorkspaceError(
            f"{path} could not be written: {error.strerror}.", "Make its folder writable, or choose another place."
        )
    if error.errno == errno.EFBIG:
        return WorkspaceError(
            f"{path} could not be written: it is larger than the largest file allowed here.",
            "Raise the limit (`ulimit -f`), or choose another disk.",
        )
    hint = "Choose another place." if error.errno in _NO_PLACE else ""
    return WorkspaceError(f"{path} could not be written: {error.strerror or error}.", hint)


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # the reader closed our output; `main` turns this into an exit code
        raise
    except OSError as error:
        raise explain_os_error(error, path) from error


@contextlib.contextmanager
def atomic_path(path: Path, *, is_private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and takes the name `path`.

    A link is followed: the file it leads to is replaced, and the link stays. Pipes, devices and standard output receive
    the bytes and are not replaced. On any failure the temporary file is removed, and the file at `path` stays as it
    was.

    Args:
        path: File to write.
        is_private: Only the owner can read the file, at every moment.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    with _in_words(path):
        passes_on = is_stream(path)
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        folder = Path(tempfile.gettempdir()) if passes_on else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:_NAME]}.", suffix=".tmp", dir=folder)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            if passes_on:
                _pour(temporary, path)
            else:
                _take_name(temporary, target, is_private=is_private)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill. On success its content appears at `path`; on failure nothing does.

    If `path` does not exist, the temporary folder is renamed to it. If it exists, it must be empty. It is kept, since
    it may be a mount point or somebody's current folder: the temporary folder is made inside it, and its content moves
    up.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    with _in_words(path):
        target = Path(os.path.realpath(path))
        is_there = target.is_dir()
        home = target if is_there else target.parent
        home.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:_NAME]}.", suffix=".tmp", dir=home))
        try:
            yield temporary
            if is_there:
                _move_up(temporary)
            else:
                temporary.chmod(0o777 & ~_umask())
                temporary.rename(target)
            _sync_folder(home)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def is_stream(path: Path) -> bool:
    """Return whether a path is a pipe, a device or our own standard output, and not a file that can be replaced."""
    try:
        status = path.stat()
    except OSError:
        return False
    is_plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return not is_plain or _standard_descriptor(status) is not None


def is_stdout(path: Path) -> bool:
    """Return whether a path leads to standard output."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(1))
    return False


def from_folder(folder: Path, path: Path | str) -> Path:
    """Return the absolute path. A relative path is relative to `folder`; `~` is the home folder."""
    return Path(os.path.abspath(folder / Path(path).expanduser()))  # noqa: PTH100 - Path.absolute keeps `..`


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely, or keep the old one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def make_output_folder(folder: Path) -> None:
    """Make a folder for results and mark it, so that `alloop pool add` skips it. A folder with files is not marked.

    Raises:
        WorkspaceError: The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            (folder / OUTPUT_MARK).touch()
    except OSError as error:
        raise explain_os_error(error, folder) from error


def check_new_folder(
    folder: Path, hint: str, file_hint: str = "Name a new folder.", error: type[AlloopError] = WorkspaceError
) -> None:
    """Refuse a folder for results that holds files, or a file in its place, before any work is done.

    Args:
        folder: Folder that must be new or empty.
        hint: The way out if it holds files.
        file_hint: The way out if it is a file.
        error: Kind of error to raise.

    Raises:
        WorkspaceError: It is no new or empty folder; or an error of the kind `error`.
    """
    if folder.exists() and not folder.is_dir():
        raise error(f"{folder} is not a folder.", file_hint)
    if folder.is_dir() and (found := next(folder.iterdir(), None)):
        raise error(f"{folder} is not empty: it holds {found.name}.", hint)


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is stable to the byte for equal values: sorted keys, no NaN."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _standard_descriptor(status: os.stat_result) -> int | None:
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(status, os.fstat(descriptor)):
                return descriptor
    return None


def _pour(source: Path, path: Path) -> None:
    """Write a file's bytes into a stream. Our own output is duplicated: a socket cannot be opened by its name."""
    descriptor = _standard_descriptor(path.stat())
    if descriptor is not None:
        sys.stdout.flush()
    with (
        source.open("rb") as data,
        path.open("wb") if descriptor is None else os.fdopen(os.dup(descriptor), "wb") as stream,
    ):
        shutil.copyfileobj(data, stream)


def _take_name(temporary: Path, target: Path, *, is_private: bool) -> None:
    # mkstemp makes files that only their owner can read; the user's umask is what applies to ordinary files.
    if not is_private:
        temporary.chmod(0o666 & ~_umask())
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
    _sync_folder(target.parent)


def _move_up(folder: Path) -> None:
    """Move a folder's content into its parent folder: all of it, or nothing."""
    entries = sorted(folder.iterdir())
    try:
        for entry in entries:
            entry.rename(folder.parent / entry.name)
    except OSError:
        for entry in entries:
            if not entry.exists():
                (folder.parent / entry.name).rename(entry)
        raise


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
