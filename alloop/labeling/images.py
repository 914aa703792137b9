"""Addresses of images for annotators' browsers: local-files storage, uploads, or a web server."""

import dataclasses
import hashlib
import io
import itertools
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from PIL import Image

from alloop.errors import LabelingError, PoolError
from alloop.labeling.connection import ServerConnection, Unanswered, retrying
from alloop.labeling.pictures import Pictures
from alloop.records import ImageRef

STORAGE_TITLE = "alloop images (do not sync)"
_WAY_OUT = "Set [labeling.images] root to a folder that holds all images, or [labeling.images] via to 'upload'."
_LOCAL_FILES = "/data/local-files/?d="
_FILES_PER_UPLOAD = 100  # with more files the server answers 500
_BYTES_PER_UPLOAD = 64 * 2**20
_ATTEMPTS = 3

# Formats, by Pillow's names, that every browser shows and Label Studio accepts.
_SUFFIX = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "GIF": ".gif", "WEBP": ".webp", "BMP": ".bmp"}
_SHOWN = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".apng"})

Pause = Callable[[int], None]


class ImageUrls(Protocol):
    """Way to make images available to the browsers of a project's annotators."""

    def urls(self, project_id: int, images: Sequence[ImageRef]) -> Mapping[str, str]:
        """Return the addresses for the tasks, by sha256. Safe to repeat."""
        ...

    def file(self, address: str) -> str | None:
        """Return the local file that an address shows; None for a copy on the server or an address not made here."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class SharedFolder:
    """Folder with two paths: `here` on this machine, `there` on the server."""

    here: Path
    there: str

    def path_here(self, name: str) -> str | None:
        """Return the local file for a path on the server; None if it is outside the folder. Reverse of `name_there`."""
        root = posixpath.normpath(self.there) if self.there else ""
        inside = posixpath.relpath(name, root) if root else posixpath.normpath(name)
        return None if inside == ".." or inside.startswith(("../", "/")) else str(self.here / inside)

    def name_there(self, file: str) -> str | None:
        """Return the server's path of a file; None if the file is outside the folder."""
        path = Path(os.path.abspath(file))  # noqa: PTH100 - Path.absolute keeps `..`
        for inside, root in ((path, self.here), (path.resolve(), self.here.resolve())):
            if inside.is_relative_to(root):
                return posixpath.join(self.there, inside.relative_to(root).as_posix())
        return None


class LocalFiles:
    """Files that the server reads from its own disk.

    Args:
        connection: Connection to the server.
        document_root: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, as a path on the server.
        folders: Folders of images, at or below the document root.
        pause: Function that waits before checking the result of an unclear request.
        way_out: Hint for the error about an image outside all folders.
    """

    def __init__(
        self,
        connection: ServerConnection,
        document_root: str,
        folders: Sequence[SharedFolder],
        pause: Pause,
        way_out: str = _WAY_OUT,
    ) -> None:
        self._connection = connection
        self._root = posixpath.normpath(document_root)
        self._folders = tuple(folders)
        self._pause = pause
        self._way_out = way_out
        self._registered: set[str] = set()

    def urls(self, project_id: int, images: Sequence[ImageRef]) -> Mapping[str, str]:
        places = {image.sha256: self._place(image) for image in images}
        for storage in sorted({self._storage(place) for place in places.values()}):
            self._register(project_id, storage)
        return {sha256: _LOCAL_FILES + quote(posixpath.relpath(place, self._root)) for sha256, place in places.items()}

    def file(self, address: str) -> str | None:
        if not address.startswith(_LOCAL_FILES):
            return None
        place = posixpath.join(self._root, unquote(address.removeprefix(_LOCAL_FILES)))
        found = (folder.path_here(place) for folder in self._folders)
        return next((path for path in found if path is not None), None)

    def _place(self, image: ImageRef) -> str:
        for folder in self._folders:
            if (place := folder.name_there(image.path)) is not None:
                return place
        known = ", ".join(str(folder.here) for folder in self._folders) or "none"
        raise LabelingError(
            f"{image.path} is outside the folder that Label Studio can read ([labeling.images] root: {known}).",
            self._way_out,
        )

    def _storage(self, place: str) -> str:
        """Return the folder to register: the one directly below the document root, which the server itself refuses."""
        for folder in self._folders:
            if folder.there != self._root and place.startswith(folder.there.rstrip("/") + "/"):
                return folder.there.rstrip("/")
        parts = posixpath.relpath(place, self._root).split("/")
        if len(parts) < 2 or parts[0] == "..":
            raise LabelingError(
                f"{place} lies right in the server's document root {self._root}; Label Studio serves subfolders only.",
                "Start Label Studio with the parent folder as LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT and set "
                "[labeling.images] root to the same, or set [labeling.images] via to 'upload'.",
            )
        return posixpath.join(self._root, parts[0])

    def _register(self, project_id: int, storage: str) -> None:
        """Allow the project to serve a folder. alloop never syncs it, because a sync would create more tasks."""
        if storage in self._registered:
            return

        def exists() -> bool | None:
            rows = self._connection.read("api/storages/localfiles", {"project": project_id})
            paths = [str(row.get("path") or "").rstrip("/") for row in rows]
            return True if any(storage == path or storage.startswith(path + "/") for path in paths if path) else None

        def create() -> bool:
            body = {"project": project_id, "path": storage, "use_blob_urls": True, "title": STORAGE_TITLE}
            self._connection.send("POST", "api/storages/localfiles", body)
            return True

        try:
            if exists() is None:
                retrying(create, exists, _ATTEMPTS, self._pause)
        except LabelingError as error:
            raise LabelingError(
                f"Label Studio cannot serve {storage}: {error.message}",
                "Start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and with [labeling.images] root (or "
                "server_root, its name in a container) as LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, or set "
                "[labeling.images] via to 'upload'.",
            ) from error
        self._registered.add(storage)


class UrlPrefix:
    """Images that a web server offers: `root` on this disk is `prefix` on the web server."""

    def __init__(self, root: Path, prefix: str) -> None:
        self._folder = SharedFolder(root, "")
        self._prefix = prefix.rstrip("/") + "/"

    def urls(self, project_id: int, images: Sequence[ImageRef]) -> Mapping[str, str]:
        return {image.sha256: self._url(image) for image in images}

    def file(self, address: str) -> str | None:
        if not address.startswith(self._prefix):
            return None
        return self._folder.path_here(unquote(address.removeprefix(self._prefix)))

    def _url(self, image: ImageRef) -> str:
        name = self._folder.name_there(image.path)
        if name is None:
            raise LabelingError(
                f"{image.path} is outside [labeling.images] root ({self._folder.here}), so it has no address.",
                "Set root and url_prefix to a folder that holds all images, or [labeling.images] via to 'upload'.",
            )
        return self._prefix + quote(name)


class Uploads:
    """Images that are uploaded and named by their key. An image is uploaded only once."""

    def __init__(self, connection: ServerConnection, pause: Pause, pictures: Pictures) -> None:
        self._connection = connection
        self._pause = pause
        self._pictures = pictures
        self._known: dict[str, str] | None = None

    def urls(self, project_id: int, images: Sequence[ImageRef]) -> Mapping[str, str]:
        if self._known is None:
            self._known = self._list(project_id)
        known = self._known
        missing = [image for image in {image.key: image for image in images}.values() if image.key not in known]
        for files in _in_parcels(missing, self._pictures):
            known |= self._send(project_id, files)
        return {image.sha256: known[image.key] for image in images}

    def file(self, address: str) -> str | None:
        return None

    def _send(self, project_id: int, files: Mapping[str, tuple[str, bytes, str]]) -> dict[str, str]:
        """Upload files, by key. A file that arrives twice only wastes disk space."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                fields = {f"file{number}": file for number, file in enumerate(files.values())}
                self._connection.send(
                    "POST", f"api/projects/{project_id}/import", params={"commit_to_project": "false"}, files=fields
                )
            except Unanswered:
                if attempt == _ATTEMPTS:
                    raise
                self._pause(attempt)
            there = self._list(project_id)
            if all(key in there for key in files):
                return {key: there[key] for key in files}
        raise LabelingError(
            f"Label Studio at {self._connection.url} accepted {len(files)} image files but does not list them.",
            "Check its disk and its log.",
        )

    def _list(self, project_id: int) -> dict[str, str]:
        """Return the addresses of files uploaded before, by key. File names are `<random>-<key><suffix>`."""
        rows = self._connection.read(f"api/projects/{project_id}/file-uploads", {"all": "true"})
        found: dict[str, str] = {}
        for row in rows:
            stem = posixpath.splitext(posixpath.basename(row["file"]))[0]
            found.setdefault(stem.rpartition("-")[2], "/data/" + row["file"])
        return found


class Mixed:
    """Serves local files that browsers show correctly in one way, and uploads the other images.

    The others are images that are not files of this machine, formats that browsers do not show, such as TIFF, and
    images with more than 8 bits a channel. Browsers show only the upper 8 bits of these: 12-bit data would be nearly
    black.
    """

    def __init__(self, way: ImageUrls, uploads: Uploads, pictures: Pictures) -> None:
        self._way = way
        self._uploads = uploads
        self._pictures = pictures

    def urls(self, project_id: int, images: Sequence[ImageRef]) -> Mapping[str, str]:
        is_served = [_is_shown(image) and self._pictures.local_file(image) is not None for image in images]
        shown = list(itertools.compress(images, is_served))
        others = [image for image, served in zip(images, is_served, strict=True) if not served]
        found = dict(self._way.urls(project_id, shown)) if shown else {}
        if others:
            found.update(self._uploads.urls(project_id, others))
        return found

    def file(self, address: str) -> str | None:
        return self._way.file(address)


def _is_shown(image: ImageRef) -> bool:
    return image.depth is None and Path(image.path).suffix.lower() in _SHOWN


def browser_file(image: ImageRef, pictures: Pictures) -> tuple[str, bytes, str]:
    """Return name, bytes and media type of a file that shows the model's pixels: the image's own file, or a PNG.

    Raises:
        LabelingError: The file cannot be read, or holds other bytes than the image.
    """
    try:
        data = pictures.read(image)
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise LabelingError(
                f"{image.path} was replaced since it was added to the pool, so it was not uploaded.",
                "Run `alloop pool add`, then run this command again.",
            )
        with Image.open(io.BytesIO(data)) as opened:
            suffix = _SUFFIX.get(opened.format or "") if image.depth is None else None
        if suffix is None:
            data, suffix = pictures.as_png(image), ".png"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, PoolError) as error:
        reason = error.message.rstrip(".") if isinstance(error, PoolError) else error
        raise LabelingError(
            f"{image.path} cannot be read for upload: {reason}.", "Look at it with `alloop pool check`."
        ) from error
    media_type = {"jpg": "jpeg"}.get(suffix[1:], suffix[1:])
    return f"{image.key}{suffix}", data, f"image/{media_type}"


def _in_parcels(images: Sequence[ImageRef], pictures: Pictures) -> Iterator[dict[str, tuple[str, bytes, str]]]:
    """Yield groups of files that fit into one request, read only when needed."""
    parcel: dict[str, tuple[str, bytes, str]] = {}
    size = 0
    for image in images:
        file = browser_file(image, pictures)
        if parcel and (len(parcel) == _FILES_PER_UPLOAD or size + len(file[1]) > _BYTES_PER_UPLOAD):
            yield parcel
            parcel, size = {}, 0
        parcel[image.key] = file
        size += len(file[1])
    if parcel:
        yield parcel
