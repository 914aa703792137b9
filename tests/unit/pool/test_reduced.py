"""Large JPEG is reduced by its decoder, everything else is decoded whole, and bad files are refused alike."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from alloop.models.backbones import Backbone
from alloop.pool import pixels

RIM = 3  # pixels


def encode(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def scene(width: int, height: int) -> Image.Image:
    """Smooth waves with a red rim, so that a shift of a part of a pixel shows."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 37), np.cos(y / 23), np.sin((x + 2 * y) / 61)], axis=-1) * 90 + 128
    waves[:RIM] = waves[-RIM:] = waves[:, :RIM] = waves[:, -RIM:] = (255, 0, 0)
    return Image.fromarray(waves.astype(np.uint8))


def shorter(side: int) -> pixels.Needed:
    return lambda width, height: (side * width // min(width, height), side * height // min(width, height))


def resized(data: bytes, size: tuple[int, int]) -> np.ndarray:
    found = pixels.decode_enough(data, lambda *_: size)
    return np.asarray(found.image.resize(size, Image.Resampling.BILINEAR, box=found.shown)).astype(int)


def whole(data: bytes, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(pixels.decode(data)[0].resize(size, Image.Resampling.BILINEAR)).astype(int)


def check_same(data: bytes, size: tuple[int, int], rim: int = 12) -> None:
    """Compare both ways. A shift by half a pixel of the reduced image is up to 6 levels inside and 43 in the rim."""
    gaps = np.abs(resized(data, size) - whole(data, size))
    assert gaps[2:-2, 2:-2].max() <= 2
    assert gaps.max() <= rim
    assert gaps.mean() < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height", "to", "scale"), [(2001, 1501, (333, 250), 2), (2003, 1503, (160, 120), 4)])
def test_a_reduced_picture_with_a_rim_is_the_whole_one_resized(orientation, width, height, to, scale):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(scene(width, height), quality=95, subsampling=2, exif=exif)
    size = to if orientation < 5 else to[::-1]

    assert pixels.decode_enough(data, lambda *_: size).scale == scale
    check_same(data, size)


def test_what_lies_beyond_the_edges_of_a_picture_hardly_shows():
    """The blocks of 2001 x 1501 pixels reach to 2016 x 1504. An encoder may put anything there."""
    inside = np.full((1504, 2016, 3), 255, np.uint8)
    inside[:1501, :2001] = np.asarray(scene(2001, 1501))
    data = encode(Image.fromarray(inside), quality=95, subsampling=2)
    at = data.index(b"\xff\xc0") + 5
    cropped = data[:at] + struct.pack(">HH", 1501, 2001) + data[at + 4 :]

    assert pixels.decode(cropped)[0].size == (2001, 1501)
    check_same(cropped, (333, 250), rim=40)


@pytest.mark.parametrize(
    ("size", "side", "scale"),
    [
        ((4000, 3000), 256, 4), ((4000, 3000), 187, 8), ((1024, 1024), 256, 2), ((1023, 2000), 256, 1),
        ((2000, 1024), 256, 2), ((2000, 1023), 256, 1), ((512, 384), 256, 1), ((100, 80), 256, 1),
    ],
)  # fmt: skip
def test_at_least_twice_the_needed_size_is_left(size, side, scale):
    found = pixels.decode_enough(encode(Image.new("RGB", size, "teal")), shorter(side))

    assert found.scale == scale
    assert found.size == size
    assert found.image.size == (-(-size[0] // scale), -(-size[1] // scale))
    assert found.shown == (0, 0, size[0] / scale, size[1] / scale)


def test_the_needed_size_is_that_of_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    asked = []

    found = pixels.decode_enough(
        encode(Image.new("RGB", (1200, 300)), exif=exif), lambda *size: asked.append(size) or (10, 600)
    )

    assert asked == [(300, 1200)]
    assert (found.size, found.scale, found.image.size) == ((300, 1200), 1, (300, 1200))


def test_gray_jpeg_and_photos_of_several_pictures_are_reduced():
    gray = encode(scene(1200, 800).convert("L"))
    several = encode(scene(1200, 800), "MPO", save_all=True, append_images=[Image.new("RGB", (1200, 800))])

    for data in (gray, several):
        assert pixels.decode_enough(data, shorter(100)).scale == 4
        check_same(data, (150, 100))


def coded_as_rgb(image: Image.Image) -> bytes:
    return encode(image, keep_rgb=True)


OTHERS = {
    "CMYK JPEG": lambda image: encode(image.convert("CMYK")),
    "RGB JPEG": coded_as_rgb,
    "PNG": lambda image: encode(image, "PNG"),
    "PNG with alpha": lambda image: encode(image.convert("RGBA"), "PNG"),
    "palette": lambda image: encode(image.convert("P"), "PNG"),
    "16 bits": lambda image: encode(Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 250), "PNG"),
    "WebP": lambda image: encode(image, "WEBP"),
    "TIFF of JPEG": lambda image: encode(image, "TIFF", compression="jpeg"),
    "BMP": lambda image: encode(image, "BMP"),
    "GIF": lambda image: encode(image, "GIF"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("depth", [None, 16])
def test_everything_but_plain_jpeg_is_decoded_whole(kind, depth):
    data = OTHERS[kind](scene(640, 480))

    found = pixels.decode_enough(data, shorter(10), depth)

    assert (found.scale, found.shown, found.size) == (1, (0, 0, 640, 480), (640, 480))
    assert np.array_equal(found.image, pixels.decode(data, depth=depth)[0])


def why_refused(read: Callable[[bytes], object], data: bytes) -> str:
    try:
        read(data)
    except pixels.UnreadableImage as error:
        return str(error).partition("(")[0]
    return ""


def test_damaged_files_are_refused_alike():
    draw = np.random.default_rng(0)
    refused = []
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        data = np.frombuffer(encode(scene(400, 300), **options), dtype=np.uint8)
        for _ in range(60):
            changed = data.copy()
            places = draw.integers(0, len(data), draw.integers(1, 20))
            changed[places] = draw.integers(0, 256, len(places))
            whole = why_refused(pixels.look, changed.tobytes())
            assert why_refused(lambda bad: pixels.look(bad, needed=shorter(30)), changed.tobytes()) == whole
            refused.append(whole)
    assert 10 < len(list(filter(None, refused))) < len(refused) - 10


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_cut_files_are_refused_alike_whatever_the_callers_program_allows(monkeypatch, lenient, options):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = encode(scene(400, 300), **options)
    whole_too, n_refused = 0, 0

    for end in [*range(2, len(data) - 40, len(data) // 60), *range(len(data) - 40, len(data) + 1)]:
        refused = []
        for read in (
            pixels.decode,
            lambda cut: pixels.decode_enough(cut, shorter(30)),
            lambda cut: pixels.look(cut, needed=shorter(30)),
        ):
            refused.append(why_refused(read, data[:end]))
        assert refused[0] == refused[1] == refused[2], end
        n_refused += bool(refused[0])
        whole_too += not refused[0]

    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient
    assert n_refused > 60
    assert whole_too >= 1


def test_a_cut_file_that_is_accepted_is_gray_where_it_ends_in_both_ways():
    data = encode(scene(800, 600))
    cut = data[: len(data) // 2]

    found = pixels.decode_enough(cut, shorter(75), may_be_cut=True)
    size = (100, 75)
    reduced = np.asarray(found.image.resize(size, Image.Resampling.BILINEAR, box=found.shown)).astype(int)
    full = np.asarray(pixels.decode(cut, may_be_cut=True)[0].resize(size, Image.Resampling.BILINEAR)).astype(int)

    assert found.scale == 4
    assert np.abs(reduced - full).mean() < 1


@pytest.mark.parametrize(
    ("backbone", "size", "scale"),
    [
        (Backbone(None, 1, image_size=224, resize=256), (4000, 3000), 4),
        (Backbone(None, 1, image_size=224), (4000, 3000), 4),
        (Backbone(None, 1, image_size=8, resize=0), (400, 300), 8),
        (Backbone(None, 1, image_size=224, resize=256, interpolation="nearest"), (4000, 3000), 1),
        (Backbone(None, 1, image_size=16), (4000, 200), 1),  # a strip is cut first
    ],
)
def test_a_trunk_says_what_it_needs(backbone, size, scale):
    assert pixels.decode_enough(encode(Image.new("RGB", size)), backbone.needed_size).scale == scale


SMALL = {
    **OTHERS,
    "JPEG": lambda image: encode(image, quality=80),
    "progressive JPEG": lambda image: encode(image, progressive=True),
    "gray JPEG": lambda image: encode(image.convert("L")),
    "one bit": lambda image: encode(image.convert("1"), "PNG"),
    "gray with alpha": lambda image: encode(image.convert("LA"), "PNG"),
}
SMALL.pop("16 bits")  # Pillow clips; test_pixels.py has the numbers


def as_pillow_reads(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(upright.convert("RGB"))


@pytest.mark.parametrize("kind", SMALL)
def test_two_hundred_images_that_are_not_reduced_have_the_pixels_that_pillow_gives(kind):
    draw = np.random.default_rng(0)
    for number in range(200):
        height, width = draw.integers(1, 48, 2)
        coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        data = SMALL[kind](coarse.resize((int(width), int(height))))

        found = pixels.decode_enough(data, shorter(64))

        assert np.array_equal(found.image, as_pillow_reads(data)), number
        assert np.array_equal(found.image, pixels.decode(data)[0]), number
