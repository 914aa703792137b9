"""The program in an exported folder gives a trunk exactly the pixels that alloop gives it."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from alloop.engine import exported_predict, views
from alloop.engine.exported_folder import describe_preprocessing
from alloop.models.backbones import Backbone, side_by_side
from alloop.models.side_by_side import join_pixels
from alloop.pool import pixels
from alloop.pool.picture import Photo
from alloop.records import ImageRef

TRUNK = Backbone(nn.Identity(), 1, image_size=56, resize=64)
KINDS = {
    "JPEG": (".jpg", "RGB", {"quality": 90}),
    "progressive": (".jpg", "RGB", {"progressive": True}),
    "gray": (".jpg", "L", {}),
    "CMYK": (".jpg", "CMYK", {}),
    "coded as RGB": (".jpg", "RGB", {"keep_rgb": True}),
    "PNG": (".png", "RGB", {}),
    "alpha": (".png", "RGBA", {}),
    "WebP": (".webp", "RGB", {"lossless": True}),
}


def files(folder: Path, kind: str) -> list[ImageRef]:
    """Return images of a kind: of 8 sizes up to 700 x 525 pixels, each with another orientation."""
    suffix, mode, options = KINDS[kind]
    refs = []
    for number, (width, height) in enumerate(
        [(700, 525), (525, 700), (301, 257), (256, 256), (255, 400), (64, 50), (9, 700), (523, 517)], start=1
    ):
        coarse = np.random.default_rng(number).integers(0, 256, (30, 40, 4), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height)).convert("RGBA" if mode == "RGBA" else "RGB")
        exif = Image.Exif()
        exif[0x0112] = number
        path = folder / f"{number}{suffix}"
        picture.convert(mode).save(path, exif=exif, **options)
        refs.append(ImageRef(number, hashlib.sha256(path.read_bytes()).hexdigest(), str(path)))
    return refs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "trunk", [TRUNK, dataclasses.replace(TRUNK, resize=0), dataclasses.replace(TRUNK, interpolation="nearest")]
)
def test_the_program_prepares_each_kind_of_file_as_alloop_does(tmp_path, kind, trunk):
    (rule,) = describe_preprocessing(trunk, None, {})["inputs"]

    for ref in files(tmp_path, kind):
        assert np.array_equal(exported_predict.prepare(ref.path, rule), trunk.preprocess(Photo(ref)).numpy()), ref


def test_training_views_are_made_of_a_reduced_photo(tmp_path):
    (ref, *_) = files(tmp_path, "JPEG")
    photo = Photo(ref)

    small = views.shrink(photo, dataclasses.replace(TRUNK, image_size=40))
    with Image.open(ref.path) as image:
        expected = np.asarray(image.resize((106, 80), Image.Resampling.BILINEAR)).astype(int)

    assert [decoded.scale for decoded in photo._decoded] == [2]
    assert small.shape == (3, 80, 106)
    assert np.abs(small.permute(1, 2, 0).numpy() - expected).mean() < 1


def test_trunks_side_by_side_share_a_decoded_photo_and_see_what_each_sees_alone(tmp_path, monkeypatch):
    (ref, *_) = files(tmp_path, "JPEG")
    trunks = [dataclasses.replace(TRUNK, image_size=size, resize=size) for size in (16, 100, 120)]
    alone = [trunk.preprocess(Photo(ref)) for trunk in trunks]
    scales = []
    real = pixels.decode_enough
    monkeypatch.setattr(pixels, "decode_enough", lambda *a, **k: scales.append((r := real(*a, **k)).scale) or r)

    together = side_by_side(trunks).preprocess(Photo(ref))

    assert scales == [8, 2]
    assert torch.equal(together, join_pixels(alone, is_batch=False))
