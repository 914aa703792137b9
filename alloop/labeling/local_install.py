"""Installation of Label Studio in a Python environment of its own, and an empty database made once per machine."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import platformdirs

from alloop.errors import LabelingError
from alloop.files import atomic_path, explain_os_error, write_json
from alloop.progress import Progress, silent

VERSION = "1.23.2"
VENV_VARIABLE = "ALLOOP_LABEL_STUDIO_VENV"

# Folder of alloop's own files in that environment: markers, lock, log, and the empty database.
_OURS = "alloop"
_BEGUN = "begun.json"
_DONE = "done.json"


def venv_path() -> Path:
    """Return the folder of Label Studio's environment: ALLOOP_LABEL_STUDIO_VENV, or one in the user's cache folder."""
    named = os.environ.get(VENV_VARIABLE)
    return Path(named).absolute() if named else platformdirs.user_cache_path("alloop") / f"label-studio-{VERSION}"


def program(venv: Path, name: str = "label-studio") -> Path:
    """Return the path of a program in that environment."""
    return venv / "bin" / name


def install(progress: Progress = silent) -> Path:
    """Make sure that Label Studio is installed in an environment of its own.

    An installation is complete once its marker is written. An interrupted one starts again from the beginning. An
    environment that the user made and named by ALLOOP_LABEL_STUDIO_VENV is used as it is.

    Returns:
        The environment's folder.

    Raises:
        LabelingError: pip or uv failed (the message ends with its output), or the folder holds something else.
    """
    venv = venv_path()
    if _is_complete(venv):
        return venv
    _check_ours(venv)
    with only_one(venv / _OURS, "install"):
        if _is_complete(venv):
            return venv
        _make_room(venv)
        for command in _install_commands(venv):
            run_logged(command, venv / _OURS / "install.log", f"installing Label Studio {VERSION}", progress)
        write_json(venv / _OURS / _DONE, {"version": VERSION})
    return venv


def copy_template(database: Path, environment: Mapping[str, str], progress: Progress) -> None:
    """Give a new server an empty, migrated database. This takes seconds; migrating takes a minute.

    Args:
        database: Path at which the server expects its database. An existing file is kept.
        environment: Environment variables of the server; LABEL_STUDIO_BASE_DATA_DIR is replaced.
        progress: Called with the seconds that migrating has taken.
    """
    if database.exists():
        return
    venv = venv_path()
    template = venv / _OURS / f"empty-{VERSION}.sqlite3"
    if not template.is_file():
        if not os.access(venv, os.W_OK):
            return  # installed by another user: the server migrates its database itself
        with only_one(template.parent, "template"):
            if not template.is_file():
                _make_template(venv, template, environment, progress)
    with atomic_path(database) as temporary:
        shutil.copyfile(template, temporary)


@contextlib.contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock that only one process has at a time. The lock is released when its holder ends, even by a crash."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f".{name}.lock").open("w")
    except OSError as error:
        raise explain_os_error(error, folder) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_logged(
    command: Sequence[str], log: Path, label: str, progress: Progress, env: Mapping[str, str] | None = None
) -> None:
    """Run a command to its end and report the seconds. Its output goes to a log, which errors name."""
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, cwd=log.parent)
        seconds = 0
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
                seconds += 1
                progress(label, seconds, 0)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        raise LabelingError(
            f"{label} failed (exit status {process.returncode}): {tail(log)}",
            f"The full output is in {log}. A second try starts from the beginning.",
        )
    progress(label, seconds, seconds)


def tail(log: Path, most: int = 600) -> str:
    """Return the end of a log."""
    try:
        return log.read_text(errors="replace").strip()[-most:]
    except OSError:
        return "it wrote no log"


def _is_complete(venv: Path) -> bool:
    if (venv / _OURS / _BEGUN).exists() and not (venv / _OURS / _DONE).exists():
        return False
    installed = any(venv.glob(f"lib/python3*/site-packages/label_studio-{VERSION}.dist-info/RECORD"))
    return installed and program(venv).is_file()


def _check_ours(venv: Path) -> None:
    """Refuse to install into a folder that holds something else."""
    if venv.exists() and any(venv.iterdir()) and not (venv / _OURS).exists():
        raise LabelingError(
            f"{venv} exists and does not hold Label Studio {VERSION}.",
            f"Point {VENV_VARIABLE} at a folder that alloop may create, or install label-studio=={VERSION} there.",
        )


def _make_room(venv: Path) -> None:
    """Remove the rest of an interrupted installation."""
    write_json(venv / _OURS / _BEGUN, {"version": VERSION})
    (venv / _OURS / _DONE).unlink(missing_ok=True)
    for path in venv.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name != _OURS:
            shutil.rmtree(path)


def _install_commands(venv: Path) -> list[list[str]]:
    requirement = f"label-studio=={VERSION}"
    uv = shutil.which("uv")
    python = str(program(venv, "python"))
    if uv:
        return [
            [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(venv)],
            [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, requirement],
        ]
    return [
        [sys.executable, "-m", "venv", str(venv)],
        [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", requirement],
    ]


def _make_template(venv: Path, template: Path, environment: Mapping[str, str], progress: Progress) -> None:
    # Migrating flushes the file two thousand times, and temporary folders may be in memory.
    with tempfile.TemporaryDirectory(prefix="label-studio-") as folder:
        scratch = Path(folder)
        # This command migrates an empty database, creates no user, and ends.
        command = [str(program(venv)), "version"]
        env = dict(environment) | {"LABEL_STUDIO_BASE_DATA_DIR": str(scratch)}
        run_logged(command, scratch / "server.log", "preparing an empty Label Studio", progress, env)
        with atomic_path(template) as temporary:
            shutil.copyfile(scratch / "label_studio.sqlite3", temporary)
