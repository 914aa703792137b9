import dataclasses
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alloop.errors import LabelingError
from alloop.labeling.images import LocalFiles, Mixed, SharedFolder, UrlPrefix, browser_file
from alloop.pool.picture import PICTURES
from alloop.records import ImageRef


class FakeConnection:
    """Remembers the folders a project may serve."""

    url = "http://fake"

    def __init__(self, *paths: str) -> None:
        self.paths = list(paths)

    def read(self, path: str, params: object = None) -> list[dict[str, str]]:
        return [{"path": known} for known in self.paths]

    def send(self, method: str, path: str, body: dict[str, str]) -> dict[str, str]:
        self.paths.append(body["path"])
        return body


def ref(path: object, number: int = 0) -> ImageRef:
    data = path.read_bytes() if isinstance(path, Path) and path.exists() else str(number).encode()
    return ImageRef(number, hashlib.sha256(data).hexdigest(), str(path))


def local_files(connection: FakeConnection, root: str, *folders: SharedFolder) -> LocalFiles:
    return LocalFiles(connection, root, folders, lambda attempt: None)  # type: ignore[arg-type]


def test_addresses_are_relative_to_the_document_root_and_percent_encoded():
    connection = FakeConnection()
    ways = local_files(connection, "/srv", SharedFolder(Path("/pool"), "/srv"))

    urls = ways.urls(1, [ref("/pool/pets/a b#c%.png")])

    assert list(urls.values()) == ["/data/local-files/?d=pets/a%20b%23c%25.png"]
    assert connection.paths == ["/srv/pets"]


def test_each_folder_below_the_root_is_registered_once():
    connection = FakeConnection("/srv/dogs")
    ways = local_files(connection, "/srv", SharedFolder(Path("/pool"), "/srv"))
    images = [ref("/pool/cats/1.png", 1), ref("/pool/dogs/deep/2.png", 2), ref("/pool/cats/3.png", 3)]

    ways.urls(1, images)
    ways.urls(1, images)

    assert connection.paths == ["/srv/dogs", "/srv/cats"]


def test_several_folders_may_hang_below_one_root():
    connection = FakeConnection()
    ways = local_files(
        connection, "/ws/f", SharedFolder(Path("/a"), "/ws/f/a-1"), SharedFolder(Path("/b"), "/ws/f/b-2")
    )

    urls = ways.urls(1, [ref("/a/x/1.png", 1), ref("/b/2.png", 2)])

    assert sorted(urls.values()) == ["/data/local-files/?d=a-1/x/1.png", "/data/local-files/?d=b-2/2.png"]
    assert connection.paths == ["/ws/f/a-1", "/ws/f/b-2"]


@pytest.mark.parametrize("path", ["/elsewhere/1.png", "/pool-2/1.png", "/pool/../etc/1.png"])
def test_an_image_outside_is_refused_by_name(path: str):
    ways = local_files(FakeConnection(), "/srv", SharedFolder(Path("/pool"), "/srv"))

    with pytest.raises(LabelingError, match="is outside the folder that Label Studio can read"):
        ways.urls(1, [ref(path)])


def test_an_image_right_in_the_document_root_is_explained():
    ways = local_files(FakeConnection(), "/srv", SharedFolder(Path("/pool"), "/srv"))

    with pytest.raises(LabelingError, match="subfolders only") as caught:
        ways.urls(1, [ref("/pool/1.png")])
    assert "parent folder" in caught.value.hint


def test_a_web_address_takes_the_place_of_the_root():
    urls = UrlPrefix(Path("/pool"), "https://img.example.org/p/").urls(1, [ref("/pool/ü/a b.png")])

    assert list(urls.values()) == ["https://img.example.org/p/%C3%BC/a%20b.png"]
    with pytest.raises(LabelingError, match="has no address"):
        UrlPrefix(Path("/pool"), "https://x").urls(1, [ref("/else/1.png")])


@pytest.mark.parametrize(("form", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("GIF", ".gif"), ("BMP", ".bmp")])
def test_what_browsers_draw_is_uploaded_as_it_is_under_its_true_suffix(tmp_path: Path, form: str, suffix: str):
    path = tmp_path / "misnamed.dat"
    Image.new("RGB", (3, 2), "red").save(path, format=form)

    name, data, media_type = browser_file(ref(path), PICTURES)

    assert name == ref(path).sha256 + suffix
    assert data == path.read_bytes()
    assert media_type == {"JPEG": "image/jpeg"}.get(form, f"image/{form.lower()}")


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "I;16", "F", "P", "1", "RGBA"])
def test_other_formats_become_png_in_every_mode(tmp_path: Path, mode: str):
    path = tmp_path / "scan.tiff"
    Image.new(mode, (3, 2)).save(path)

    name, data, _ = browser_file(ref(path), PICTURES)

    assert name.endswith(".png")
    with Image.open(io.BytesIO(data)) as opened:
        assert (opened.format, opened.size) == ("PNG", (3, 2))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_people_see_deep_images_with_the_pixels_of_the_model(tmp_path: Path, form: str):
    path = tmp_path / f"scan.{form.lower()}"
    Image.fromarray(np.array([[0, 1000, 4095]], dtype=np.uint16)).save(path)
    image = dataclasses.replace(ref(path), depth=12)

    name, data, media_type = browser_file(image, PICTURES)

    assert (name, media_type) == (f"{image.key}.png", "image/png")
    with Image.open(io.BytesIO(data)) as opened:
        assert (opened.mode, np.asarray(opened)[0, :, 0].tolist()) == ("RGB", [0, 62, 255])  # v x 255 / 4095
    assert image.key != dataclasses.replace(image, depth=14).key != image.sha256


def test_deep_images_go_by_upload_whatever_the_way_of_the_others(tmp_path: Path):
    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def urls(self, project_id: int, images: list[ImageRef]) -> dict[str, str]:
            return {image.sha256: self.name for image in images}

    images = [ImageRef(1, "a", "/p/1.png"), ImageRef(2, "b", "/p/2.png", 12), ImageRef(3, "c", "/p/3.tiff")]
    ways = Mixed(Fake("file"), Fake("upload"), PICTURES)  # type: ignore[arg-type]

    assert ways.urls(1, images) == {"a": "file", "b": "upload", "c": "upload"}


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes | None):
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(LabelingError, match=r"bad\.png cannot be read for upload"):
        browser_file(ref(path), PICTURES)


def test_a_file_that_was_replaced_is_not_uploaded_under_the_name_of_another(tmp_path: Path):
    path = tmp_path / "pet.png"
    Image.new("RGB", (3, 2), "red").save(path)
    before = ref(path)
    Image.new("RGB", (3, 2), "blue").save(path)

    with pytest.raises(LabelingError, match=r"pet\.png was replaced since it was added"):
        browser_file(before, PICTURES)


@pytest.mark.parametrize("name", ["pets/a b#c%.png", "pets/ümläut 猫.png", "pets/deep/x&y=1.png"])
def test_an_address_leads_back_to_its_file(name: str):
    image = ref(f"/pool/{name}")
    local = local_files(FakeConnection(), "/srv", SharedFolder(Path("/pool"), "/srv"))
    deeper = local_files(FakeConnection(), "/srv", SharedFolder(Path("/pool"), "/srv/files/pool-1"))
    web = UrlPrefix(Path("/pool"), "https://images.example.org/pets")

    for way in (local, deeper, web):
        (address,) = way.urls(1, [image]).values()
        assert way.file(address) == image.path


@pytest.mark.parametrize(
    "address", ["", "/data/upload/1/x.png", "https://example.org/x.png", "/data/local-files/?d=elsewhere/x.png"]
)
def test_an_address_of_something_else_leads_nowhere(address: str):
    assert local_files(FakeConnection(), "/srv", SharedFolder(Path("/pool"), "/srv/pool")).file(address) is None
    assert UrlPrefix(Path("/pool"), "https://images.example.org").file(address) is None
