"""Back end for Label Studio: makes its annotator from the settings."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from alloop.errors import ConfigError, LabelingError
from alloop.files import from_folder
from alloop.labeling import local_server
from alloop.labeling.annotator import Annotator
from alloop.labeling.backend import Answering, Backend, BackendSetup
from alloop.labeling.label_config import TASKS, check_names
from alloop.labeling.settings import ImagesSettings, LabelStudioSettings, ProjectSettings, Settings

if TYPE_CHECKING:
    from alloop.labeling.connection import ServerConnection
    from alloop.labeling.images import ImageUrls

URL_VARIABLE = "LABEL_STUDIO_URL"
KEY_VARIABLE = "LABEL_STUDIO_API_KEY"
_DEFAULT_URL = "http://localhost:8080"


def _check_classes(settings: Settings) -> None:
    # A hand-written labeling interface is checked when its project is opened.
    if settings.labeling.label_studio.project_id is None:
        check_names(settings.project.classes)


def _build(setup: BackendSetup) -> Annotator:
    # Importing the SDK takes a second or two, and checking class names does not need it.
    from alloop.labeling.connection import ServerConnection
    from alloop.labeling.images import Mixed, Uploads
    from alloop.labeling.label_studio import LabelStudioAnnotator
    from alloop.labeling.label_studio_project import ProjectPlan

    labeling, project = setup.settings.labeling, setup.settings.project
    own = labeling.label_studio
    url, key, local = _address(own, setup.folder, setup.environ)
    connection = ServerConnection(url, key, own.timeout)
    plan = ProjectPlan(
        title=_title(project),
        workspace_key=setup.workspace_key,
        classes=tuple(project.classes),
        wording=TASKS[project.task],
        preannotate=labeling.preannotate,
        annotations_per_image=labeling.annotations_per_image,
        project_id=own.project_id,
    )
    uploads = Uploads(connection, _pause, setup.pictures)
    way = _way(labeling.images, setup.folder, local, connection)
    images = uploads if way is None else Mixed(way, uploads, setup.pictures)
    return LabelStudioAnnotator(connection, images, plan, own.push_batch, settle=min(own.timeout, 30.0))


def _page(asked: Answering) -> str | None:
    """Return the address of the project's Data Manager, or of a task in it."""
    own = asked.settings.labeling.label_studio
    local = local_server.read_credentials(asked.folder)
    named, has_key = _named_url(own, asked.environ), _has_key(own, asked.environ)
    url = local.url if local is not None and not has_key and _is_local(named, local) else named
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not asked.project_ref.isdecimal():
        return None
    place = parts.netloc.rpartition("@")[2]  # without a name and a password
    address = f"{parts.scheme}://{place}{parts.path.rstrip('/')}/projects/{asked.project_ref}/data"
    number = (asked.task_id or "").partition(":")[0]
    return f"{address}?task={number}" if number.isdecimal() else address


def _named_url(own: LabelStudioSettings, environ: Mapping[str, str]) -> str:
    return environ.get(URL_VARIABLE, "").strip() or own.url


def _has_key(own: LabelStudioSettings, environ: Mapping[str, str]) -> bool:
    return bool(environ.get(KEY_VARIABLE, "").strip()) or own.api_key_file is not None


def _is_local(named_url: str, local: local_server.Credentials) -> bool:
    return named_url.rstrip("/") in {_DEFAULT_URL, local.url}


def _title(project: ProjectSettings) -> str:
    # Label Studio accepts titles of 3 to 50 characters.
    return f"alloop {project.name}"[:50]


def _address(
    own: LabelStudioSettings, folder: Path, environ: Mapping[str, str]
) -> tuple[str, str, local_server.Credentials | None]:
    """Return address and key, and the credentials if the server is the workspace's own."""
    named_url = _named_url(own, environ)
    key = environ.get(KEY_VARIABLE, "").strip()
    local = local_server.read_credentials(folder)
    if not key and own.api_key_file is not None:
        key = _read_key(from_folder(folder, own.api_key_file))
    if key:
        # The address or token of the workspace's own server may also be given by hand.
        return named_url, key, local if local is not None and named_url.rstrip("/") == local.url else None
    if local is not None and _is_local(named_url, local):
        return local.url, local.token, local
    raise LabelingError(
        f"There is no key for Label Studio at {named_url}.",
        f"Set {KEY_VARIABLE} (in Label Studio: Account & Settings > Personal Access Token), name a file that holds it "
        "in [labeling.label_studio] api_key_file, or start a server of your own with `alloop labelstudio up`.",
    )


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelingError(
            f"[labeling.label_studio] api_key_file names {path}, which cannot be read ({type(error).__name__}).",
            "Put the bare token into that file.",
        ) from None
    if not key:
        raise LabelingError(f"{path} ([labeling.label_studio] api_key_file) is empty.", "Put the bare token into it.")
    return key


def _way(
    images: ImagesSettings, folder: Path, local: local_server.Credentials | None, connection: "ServerConnection"
) -> "ImageUrls | None":
    """Return the way in which browsers get local files; None if they are uploaded."""
    from alloop.labeling.images import LocalFiles, SharedFolder, UrlPrefix

    if images.via == "upload":
        return None
    if images.via == "url":
        if images.root is None or images.url_prefix is None:
            raise ConfigError('[labeling.images] via = "url" needs both root and url_prefix.')
        return UrlPrefix(from_folder(folder, images.root), images.url_prefix)
    if local is not None:
        shared: Sequence[SharedFolder] = [SharedFolder(Path(here), there) for here, there in local.folders]
        way_out = "Run `alloop labelstudio up`, which lets the server read all folders of the pool."
        return LocalFiles(connection, local.document_root, shared, _pause, way_out)
    if images.root is None:
        raise ConfigError(
            '[labeling.images] via is "local-files", but [labeling.images] root is not set.',
            "Set it to the folder that Label Studio serves (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT), "
            "or set [labeling.images] via to 'upload'.",
        )
    root = from_folder(folder, images.root)
    there = images.server_root or str(root)
    return LocalFiles(connection, there, [SharedFolder(root, there)], _pause)


def _pause(attempt: int) -> None:
    time.sleep(0.5 * 2 ** (attempt - 1))


BACKEND = Backend(
    _build,
    _check_classes,
    {("project", "name"): "the project in Label Studio keeps its title; it can be changed there."},
    _page,
)
