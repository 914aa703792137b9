"""Files and folders that are whole or absent: temporary name, flush, rename. And the checksums that prove it."""

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

from alloop.errors import WorkspaceError

STDOUT = Path("/dev/stdout")
OUTPUT_MARK = ".alloop-output"  # in folders of results: their pictures are no photos of the user's
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_NAME = 40  # characters of a name that its temporary name begins with; a file system takes no name of over 255 bytes


def explain_os_error(error: OSError, path: Path) -> WorkspaceError:
    """The same failure, in words a user can act on."""
    if error.errno in _NO_SPACE:
        return WorkspaceError(f"The disk is full: {path} could not be written.", "Free some space and run it again.")
    if error.errno in _READ_ONLY:
        return WorkspaceError(
            f"{path} cannot be written: {error.strerror}.", "Make its folder writable, or choose another place."
        )
    if error.errno == errno.EFBIG:
        return WorkspaceError(
            f"{path} could not be written: it is larger than a file may be here.",
            "Raise the limit (`ulimit -f`), or choose another disk.",
        )
    hint = "Choose another place." if error.errno in _NO_PLACE else ""
    return WorkspaceError(f"{path} could not be written: {error.strerror or error}.", hint)


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever read our output has seen enough: no failure of ours
        raise
    except OSError as error:
        raise explain_os_error(error, path) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and takes the name `path`.

    A link is followed: the file it leads to is replaced, and the link stays. A pipe, a device, or what standard output
    goes to gets the bytes and is not replaced. On any failure the temporary file is removed, and whatever file was at
    `path` stays as it was.

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
                _take_name(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to be filled; on success all that is in it appears at `path`, on failure nothing.

    A new folder takes its name at the end. One that is there already must be empty; it may be where a disk is mounted
    or where somebody is at work, so it stays, and what was made inside it moves up.

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
    """Whether bytes pass through it to somewhere else, so that there is no file to be replaced."""
    try:
        status = path.stat()
    except OSError:
        return False
    is_plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return not is_plain or _standard_descriptor(status) is not None


def is_stdout(path: Path) -> bool:
    """Whether this is where standard output goes, under whatever name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(1))
    return False


def from_folder(folder: Path, path: Path | str) -> Path:
    """An absolute path; a relative one counts from `folder`, and `~` is the home folder."""
    return Path(os.path.abspath(folder / Path(path).expanduser()))  # noqa: PTH100 - Path.absolute keeps `..`


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or leave the old one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def make_output_folder(folder: Path) -> None:
    """Make a folder for results, marked so that `alloop pool add` does not walk it; one that holds files stays as is.

    Raises:
        WorkspaceError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            (folder / OUTPUT_MARK).touch()
    except OSError as error:
        raise explain_os_error(error, folder) from error


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
    """Write a file's bytes into a stream. Our own output may not have a name to be opened by, such as a socket's."""
    descriptor = _standard_descriptor(path.stat())
    if descriptor is not None:
        sys.stdout.flush()
    with (
        source.open("rb") as data,
        path.open("wb") if descriptor is None else os.fdopen(os.dup(descriptor), "wb") as stream,
    ):
        shutil.copyfileobj(data, stream)


def _take_name(temporary: Path, target: Path) -> None:
    # mkstemp makes files that only their owner can read; the user's umask is what applies to ordinary files.
    temporary.chmod(0o666 & ~_umask())
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
    _sync_folder(target.parent)


def _move_up(folder: Path) -> None:
    """Move what is in a folder beside it; all of it, or nothing."""
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
