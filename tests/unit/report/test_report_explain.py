"""The pictures of an explanation."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from alloop.records import ImageRef
from alloop.report.explain import SIDE, _pictures


def ref(path: Path) -> ImageRef:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "gone"
    return ImageRef(1, sha256, str(path), depth=16 if path.stem == "deep" else None)


def test_pictures_show_what_the_model_sees_and_leave_out_what_nobody_can_read(tmp_path: Path):
    deep = np.full((400, 20), 128 * 257, dtype=np.uint16)  # 16 bits: half-way between black and white
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.new("RGB", (30_000, 1), "red").save(tmp_path / "strip.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "out").mkdir()
    names = ("deep.png", "gone.png", "broken.png", "strip.png")

    found = _pictures([(ref(tmp_path / name), name) for name in names], tmp_path / "out", "near")

    assert [picture.alt for picture in found] == ["deep.png", "strip.png"]
    with Image.open(found[0].path) as shown:
        assert (shown.size, shown.getpixel((8, 100))) == ((16, SIDE), (128, 128, 128))
    with Image.open(found[1].path) as shown:
        assert shown.size == (SIDE, 1)
