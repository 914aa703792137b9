"""The workspace's own Label Studio server: installed separately, started in the background, stopped again.

workspace/label-studio/
  credentials.json    address, user, password, token, image folders; only its owner can read it
  server.json         process id and start time of the running server
  server.log          output of the server
  data/               its database and uploads
  files/              one link per image folder; the server serves nothing else
"""

import dataclasses
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from alloop.errors import LabelingError, ServerUnavailable, WorkspaceError
from alloop.files import atomic_path, explain_os_error
from alloop.labeling import local_install, local_process
from alloop.progress import Progress, silent

USER = "alloop@example.com"

_HOST = "127.0.0.1"
_START_SECONDS = 300.0


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """Address and credentials of a workspace's own server. `repr` shows no secret.

    Attributes:
        document_root: Folder that holds everything the server may serve.
        folders: Image folders as (local path, path on the server).
    """

    url: str
    email: str
    document_root: str
    folders: tuple[tuple[str, str], ...]
    password: str = dataclasses.field(repr=False)
    token: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class ServerStatus:
    """State of a workspace's own server.

    Attributes:
        running: True if its process is alive.
        healthy: True if it answers and accepts our token.
        already_running: True if `up` found it running and at most added image folders.
    """

    url: str | None
    email: str | None
    pid: int | None
    running: bool
    healthy: bool
    log: Path
    credentials_file: Path
    already_running: bool = False


def up(
    workspace: Path, images: Sequence[Path] = (), port: int | None = None, progress: Progress = silent
) -> ServerStatus:
    """Start the workspace's own Label Studio, and install Label Studio first if it is missing.

    Args:
        workspace: Project folder; the server's data are in its folder `label-studio/`.
        images: Folders of the pool. Folders of earlier calls stay readable. A running server sees new ones at once.
        port: Port of the server; None: the last one used, or a free one.
        progress: Called with the seconds that installing, preparing and starting have taken (total 0: unknown).

    Raises:
        LabelingError: The port is in use, or the installation or the start failed; names the log.
        WorkspaceError: An image folder does not exist, or the workspace cannot be written.
    """
    folder = _home(workspace)
    with local_install.only_one(folder, "server"):
        links = _link_folders(folder / "files", images)
        now = status(workspace)
        if now.running and now.healthy and _is_here(workspace):
            _add_folders(workspace, links)
            return dataclasses.replace(now, already_running=True)
        _stop(folder)
        venv = local_install.install(progress)
        credentials = _prepare(workspace, folder, links, port)
        env = _environment(folder, credentials)
        local_install.copy_template(folder / "data" / "label_studio.sqlite3", env, progress)
        _start(venv, folder, credentials, env, progress)
        return status(workspace)


def down(workspace: Path, progress: Progress = silent) -> bool:
    """Stop the workspace's own server.

    Returns:
        True if it was running.
    """
    progress("stopping Label Studio", 0, 1)
    stopped = _stop(_home(workspace))
    progress("stopping Label Studio", 1, 1)
    return stopped


def status(workspace: Path) -> ServerStatus:
    """Return the state of the workspace's own server."""
    folder = _home(workspace)
    credentials = read_credentials(workspace)
    process = local_process.find(folder / "server.json")
    running = process is not None and process.is_alive()
    return ServerStatus(
        url=credentials.url if credentials else None,
        email=credentials.email if credentials else None,
        pid=process.pid if process and running else None,
        running=running,
        healthy=running and credentials is not None and _answers(credentials),
        log=folder / "server.log",
        credentials_file=credentials_path(workspace),
    )


def credentials_path(workspace: Path) -> Path:
    """Return the path of the file with address and token."""
    return _home(workspace) / "credentials.json"


def read_credentials(workspace: Path) -> Credentials | None:
    """Read address and credentials of the workspace's own server; None if it was never started.

    Raises:
        LabelingError: The file is damaged.
    """
    path = credentials_path(workspace)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        folders = tuple((str(here), str(there)) for here, there in found.pop("folders"))
        credentials = Credentials(**found, folders=folders)
        _port(credentials)
        return credentials
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabelingError(
            f"{path} cannot be used ({type(error).__name__}).",
            "Move the label-studio folder away and run `alloop labelstudio up`. The new server starts empty.",
        ) from None


def _home(workspace: Path) -> Path:
    return workspace.absolute() / "label-studio"


def _is_here(workspace: Path) -> bool:
    """Return whether the server serves the workspace's folder. A server started before a move serves the old folder."""
    credentials = read_credentials(workspace)
    return credentials is not None and credentials.document_root == str(_home(workspace) / "files")


def _stop(folder: Path) -> bool:
    process = local_process.find(folder / "server.json")
    stopped = process is not None and local_process.stop(process)
    (folder / "server.json").unlink(missing_ok=True)
    return stopped


def _prepare(workspace: Path, folder: Path, links: dict[str, str], port: int | None) -> Credentials:
    """Choose the port, and write address and credentials. Password and token are chosen once."""
    old = read_credentials(workspace)
    credentials = Credentials(
        url=f"http://{_HOST}:{_choose_port(port, old)}",
        email=USER,
        # Both are stored in the server's database, so a later start could not change them.
        password=old.password if old else secrets.token_urlsafe(18),
        token=old.token if old else secrets.token_hex(20),
        document_root=str(folder / "files"),
        folders=tuple(sorted(((dict(old.folders) if old else {}) | links).items())),
    )
    _write_credentials(credentials_path(workspace), credentials)
    return credentials


def _add_folders(workspace: Path, links: dict[str, str]) -> None:
    credentials = read_credentials(workspace)
    if credentials is not None and set(links.items()) - set(credentials.folders):
        folders = tuple(sorted((dict(credentials.folders) | links).items()))
        _write_credentials(credentials_path(workspace), dataclasses.replace(credentials, folders=folders))


def _write_credentials(path: Path, credentials: Credentials) -> None:
    """Write the file so that no other user can read it at any moment."""
    with atomic_path(path, is_private=True) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(credentials), indent=2), encoding="utf-8")


def _link_folders(files: Path, images: Sequence[Path]) -> dict[str, str]:
    """Link each image folder below the document root, so that the server sees only these folders."""
    links: dict[str, str] = {}
    for image_folder in images:
        target = image_folder.resolve()
        if not target.is_dir():
            raise WorkspaceError(f"{image_folder} is not a folder.", "Name the folders that hold the images.")
        digest = hashlib.sha256(os.fsencode(target)).hexdigest()[:8]
        link = files / f"{_plain(target.name)}-{digest}"
        try:
            files.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(target, target_is_directory=True)
        except OSError as error:
            raise explain_os_error(error, link) from error
        links[str(target)] = str(link)
    return links


def _plain(name: str) -> str:
    return "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_") else "_" for sign in name)[:40] or "root"


def _choose_port(asked: int | None, old: Credentials | None) -> int:
    """Return a free port. Label Studio itself would silently take another port instead of a busy one."""
    if asked is not None:
        if not _is_free(asked):
            raise LabelingError(
                f"Port {asked} on {_HOST} is taken by another program.",
                "Choose another port, or leave --port out to use any free port.",
            )
        return asked
    # The last port keeps people's bookmarks valid. A stopped server releases its port only after a moment.
    before = _port(old) if old else 0
    for _ in range(20 if before else 0):
        if _is_free(before):
            return before
        time.sleep(0.1)
    # Below the range from which systems assign ports, so that it is probably free next time, too.
    return next(port for port in iter(lambda: 20_000 + secrets.randbelow(12_000), None) if _is_free(port))


def _port(credentials: Credentials) -> int:
    return int(credentials.url.rpartition(":")[2])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True


def _environment(folder: Path, credentials: Credentials) -> dict[str, str]:
    """Return the server's environment. It also carries secrets, since all users can read command lines."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LABEL_STUDIO_", "DJANGO_"))}
    return kept | {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"),
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": credentials.document_root,
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LABEL_STUDIO_USERNAME": credentials.email,
        "LABEL_STUDIO_PASSWORD": credentials.password,
        "LABEL_STUDIO_USER_TOKEN": credentials.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    }


def _start(venv: Path, folder: Path, credentials: Credentials, env: dict[str, str], progress: Progress) -> None:
    """Start the server in the background, and wait until it accepts our token."""
    (folder / "files").mkdir(parents=True, exist_ok=True)
    port = _port(credentials)
    command = [str(local_install.program(venv)), "start", "--no-browser", "--internal-host", _HOST, "-p", str(port)]
    process = local_process.start(command, env, folder / "server.log", folder / "server.json")
    try:
        _wait_until_healthy(process, credentials, folder / "server.log", progress)
    except BaseException:
        _stop(folder)
        raise


def _wait_until_healthy(
    process: local_process.Process, credentials: Credentials, log: Path, progress: Progress
) -> None:
    began = time.monotonic()
    told = -1
    while not _answers(credentials):
        waited = time.monotonic() - began
        if not process.is_alive():
            raise LabelingError(
                f"Label Studio ended right after its start: {local_install.tail(log)}", f"Its log is {log}."
            )
        if waited > _START_SECONDS:
            raise ServerUnavailable(
                f"Label Studio did not answer at {credentials.url} within {_START_SECONDS:g} s.", f"Its log is {log}."
            )
        if int(waited) > told:
            told = int(waited)
            progress("starting Label Studio", told, 0)
        time.sleep(0.2)
    progress("starting Label Studio", told + 1, told + 1)


def _answers(credentials: Credentials) -> bool:
    """Return whether our server answers at the address. Another server would not accept our token."""
    headers = {"Authorization": f"Token {credentials.token}"}
    try:
        # Without a proxy from the environment, because the server runs on this machine.
        reply = httpx.get(f"{credentials.url}/api/current-user/whoami", headers=headers, timeout=10.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return reply.status_code == 200
