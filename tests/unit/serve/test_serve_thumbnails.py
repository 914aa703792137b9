"""Cache of thumbnails."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alloop.errors import PoolError
from alloop.records import ImageRef
from alloop.serve.thumbnails import Thumbnails, clean


def test_a_thumbnail_is_made_once_and_belongs_to_the_content(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGB", (800, 400), "red").save(path)
    image = ImageRef(1, sha_of(path), str(path))
    thumbnails = Thumbnails(tmp_path / "cache", workers=1)

    first = thumbnails.jpeg(image, 160)
    path.unlink()

    assert thumbnails.jpeg(image, 160) == first
    with Image.open(next((tmp_path / "cache").glob("*/*.jpg"))) as small:
        assert small.size == (160, 80)
    with pytest.raises(PoolError):
        thumbnails.jpeg(image, 320)  # not made before, and the file is gone


def test_a_kept_picture_that_ends_too_early_is_made_again(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGB", (800, 400), "red").save(path)
    image, thumbnails = ImageRef(1, sha_of(path), str(path)), Thumbnails(tmp_path / "cache", workers=1)
    whole = thumbnails.jpeg(image, 160)
    kept = next((tmp_path / "cache").glob("*/*.jpg"))
    kept.write_bytes(whole[:100])

    assert thumbnails.jpeg(image, 160) == whole == kept.read_bytes()


@pytest.mark.parametrize(
    ("size", "expected"), [((1024, 768), (320, 240)), ((100, 50), (100, 50)), ((5000, 3), (320, 1))]
)
def test_a_photo_is_shrunk_to_its_longer_side_and_looks_as_before(tmp_path: Path, size, expected):
    path = tmp_path / "a.jpg"
    Image.linear_gradient("L").resize(size).convert("RGB").save(path, quality=95)
    small = Image.open(
        BytesIO(Thumbnails(tmp_path / "cache", workers=1).jpeg(ImageRef(1, sha_of(path), str(path)), 320))
    )

    assert small.size == expected
    with Image.open(path) as whole:
        wanted = whole.resize(expected, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(small, dtype=int) - np.asarray(wanted, dtype=int)).mean() < 3


def test_a_picture_that_cannot_be_kept_is_still_shown(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("L", (10, 10)).save(path)
    (tmp_path / "cache").write_text("a file where the folder would be")

    assert Thumbnails(tmp_path / "cache", workers=1).jpeg(ImageRef(1, sha_of(path), str(path)), 160)[:2] == b"\xff\xd8"


def test_the_oldest_pictures_go_when_the_folder_is_too_large(tmp_path: Path):
    (tmp_path / "aa").mkdir()
    for number in range(10):
        path = tmp_path / "aa" / f"{number}.jpg"
        path.write_bytes(b"x" * 100)
        os.utime(path, (number, number))

    clean(tmp_path, 1000)
    assert len(list(tmp_path.glob("*/*.jpg"))) == 10
    clean(tmp_path, 999)
    assert sorted(path.stem for path in tmp_path.glob("*/*.jpg")) == [str(number) for number in range(3, 10)]


def sha_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
