"""Small pictures inside the report."""

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from alloop.records import ImageRef
from alloop.report.gallery import SIDE, Shot, make_stills


def shot_of(path: Path) -> Shot:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Shot(ImageRef(1, sha256, str(path)), "cat 90 %", "labeled dog")


def test_sixty_photos_take_less_than_a_megabyte(tmp_path: Path):
    generator = np.random.default_rng(0)
    shots = []
    for number in range(60):
        photo = load_sample_images().images[number % 2]
        y, x = generator.integers(0, 200), generator.integers(0, 300)
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(photo[y : y + 220, x : x + 330]).save(path, quality=95)
        shots.append(shot_of(path))

    stills = make_stills(shots)

    assert len({still.source for still in stills}) == 60
    assert sum(len(still.source) for still in stills) < 1_000_000
    encoded = stills[0].source.removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as small:
        assert max(small.size) == SIDE


def test_a_picture_carries_nothing_that_the_file_says_of_itself(tmp_path: Path):
    path = tmp_path / "holiday.jpg"
    exif = Image.Exif()
    exif[0x010E] = "taken by zelda"
    Image.new("RGB", (300, 200), "red").save(path, exif=exif, comment=b"zelda at home")

    (still,) = make_stills([shot_of(path)], with_names=False)

    data = base64.b64decode(still.source.partition(",")[2])
    assert b"zelda" not in data
    assert still.name == ""


def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path):
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    shot = shot_of(tmp_path / "a.png")
    (tmp_path / "a.png").write_text("no picture")

    assert make_stills([shot]) == ()
