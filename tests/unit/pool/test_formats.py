"""Files that Pillow alone does not read, by name and with a way out; and sound files with much beside the pixels."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from command_line import alloop
from factories import add_truth, make_project, write_settings
from PIL import Image, ImageFile, PngImagePlugin

from alloop.pool import formats, pixels

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100
FULL = 2**26


def tiff(bands: int, bits: int, sample_format: int = 1, order: str = "<") -> bytes:
    """A sound TIFF of 4 x 4 pixels, uncompressed."""
    mark = b"II" if order == "<" else b"MM"
    offset, n = 8 + 16 * bands * bits // 8, 4 * 4 * bands * bits // 8
    tags = [(256, 4), (257, 4), (259, 1), (262, 1), (273, 8), (277, bands), (278, 4), (279, n), (339, sample_format)]
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    depth = struct.pack(f"{order}HHIHH", 258, 3, 1, bits, 0)
    entries = entries[:24] + depth + entries[24:]
    pixel_bytes = bytes(range(256)) * (n // 256 + 1)
    return (
        mark
        + struct.pack(f"{order}HI", 42, offset)
        + pixel_bytes[:n]
        + struct.pack(f"{order}H", len(tags) + 1)
        + entries
        + struct.pack(f"{order}I", 0)
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("bands", "bits", "kind"), [(7, 8, 1), (5, 16, 1), (2, 16, 1), (3, 32, 3)])
def test_a_tiff_of_many_bands_is_called_so_and_not_damaged(order: str, bands: int, bits: int, kind: int):
    with pytest.raises(pixels.UnreadableImage) as caught:
        pixels.decode(tiff(bands, bits, kind, order))

    assert f"a TIFF of {bands} bands of {bits} bits (compression 1)" in str(caught.value)
    assert "damaged" not in str(caught.value)
    assert "save the bands to look at as a gray or RGB TIFF or PNG" in str(caught.value)


def test_half_a_tiff_header_is_still_damage():
    with pytest.raises(pixels.UnreadableImage, match="truncated or damaged: begins like a TIFF"):
        pixels.decode(tiff(7, 8)[:60])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\x0a" + b"\0" * 50, "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 50, "a JPEG XL picture"),
        (b"\0\0\0\x18ftypcrx " + b"\0" * 50, r"raw picture \(CR3\)"),
        (b"\0" * 128 + b"DICM" + b"\0" * 50, "a DICOM file"),
        (b"<!doctype HTML><html>404</html>", "a web page, not an image"),
    ],
)
def test_other_formats_are_named(data: bytes, words: str):
    with pytest.raises(pixels.UnreadableImage, match=words):
        pixels.decode(data)


@pytest.fixture
def no_heif(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats._reads_heif.cache_clear()
    yield
    formats._reads_heif.cache_clear()


def test_heic_without_its_reader_says_what_to_install(tmp_path: Path, no_heif: None):
    project = make_project(tmp_path, n=2)
    (project.folder / "photos" / "IMG_0001.HEIC").write_bytes(HEIC)

    added = alloop("pool", "add", project.folder / "photos", "-C", project.folder)

    assert added.code == 0
    shown = alloop("pool", "check", "-C", project.folder).out
    assert "a HEIC picture (iPhones write them); pip install 'alloop[heif]' reads them" in shown
    assert "damaged" not in shown


def test_heic_is_read_with_its_reader_upright_and_whole(tmp_path: Path):
    heif = pytest.importorskip("pillow_heif")
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[:, None], 48, axis=1)
    photo = Image.fromarray(np.stack([ramp, ramp, 255 - ramp], axis=-1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    heif.from_pillow(photo).save(tmp_path / "x.heic", quality=95, exif=exif.tobytes())
    data = (tmp_path / "x.heic").read_bytes()

    image, file_format, _ = pixels.decode(data)

    assert (file_format, image.mode) == ("HEIF", "RGB")
    shown = photo.transpose(Image.Transpose.ROTATE_270) if image.size == (64, 48) else photo
    assert np.abs(np.asarray(image).astype(int) - np.asarray(shown)).mean() < 4
    with pytest.raises(pixels.UnreadableImage, match="truncated or damaged"):
        pixels.decode(data[: len(data) // 2])


def png(**texts: bytes) -> bytes:
    """A PNG with compressed texts before its pixels, and one behind them."""
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add(b"zTXt", name.encode() + b"\0\0" + zlib.compress(text), after_idat=name == "last")
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.mark.parametrize("name", ["first", "last"])
def test_a_sound_png_with_megabytes_of_metadata_is_read(tmp_path: Path, name: str):
    data = png(**{name: b"history " * 500_000})

    assert np.array_equal(np.asarray(pixels.decode(data)[0])[..., 0], np.asarray(Image.linear_gradient("L")))
    assert (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) == (2**20, 2**26)


def test_a_png_with_a_large_color_profile_is_read():
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "PNG", icc_profile=b"profile " * 300_000)

    assert pixels.decode(file.getvalue())[0].size == (256, 256)


def test_metadata_that_would_fill_the_memory_are_refused_as_what_they_are():
    with pytest.raises(pixels.UnreadableImage, match="have more than 64 MiB; save it without metadata"):
        pixels.decode(png(first=b"\0" * (FULL + 1)))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_a_file_that_ends_too_early_is_read_as_far_as_it_goes_only_where_that_is_wanted(file_format: str):
    file = io.BytesIO()
    photo = Image.effect_noise((300, 200), 60).convert("RGB")
    photo.save(file, file_format)
    data = file.getvalue()[: -len(file.getvalue()) // 3]
    whole = np.asarray(pixels.decode(file.getvalue())[0])

    with pytest.raises(pixels.UnreadableImage, match=r'\[pool\] truncated = "accept" reads such files'):
        pixels.decode(data)
    read = np.asarray(pixels.decode(data, may_be_cut=True)[0])

    first = slice(-64, None) if file_format == "BMP" else slice(64)  # a BMP begins with its lowest line
    assert np.array_equal(read[first], whole[first])
    assert not np.array_equal(read, whole)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(pixels.UnreadableImage, match="truncated"):
        pixels.decode(data)


def test_a_jpeg_without_its_end_mark_has_all_its_pixels():
    file = io.BytesIO()
    Image.effect_noise((300, 200), 60).convert("RGB").save(file, "JPEG")
    data = file.getvalue()

    with pytest.raises(pixels.UnreadableImage, match="truncated"):
        pixels.decode(data[:-2])
    read = pixels.decode(data[:-2], may_be_cut=True)[0]

    assert np.array_equal(np.asarray(read), np.asarray(pixels.decode(data)[0]))


def test_damage_is_refused_even_where_cut_files_are_taken():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[len(data) // 2] ^= 1

    with pytest.raises(pixels.UnreadableImage, match="damaged"):
        pixels.decode(bytes(data), may_be_cut=True)


def test_a_cut_file_comes_into_the_pool_by_a_setting_and_is_trained_on(tmp_path: Path):
    project = make_project(tmp_path, n=12)
    photos = project.folder / "photos"
    file = io.BytesIO()
    Image.effect_noise((300, 200), 60).convert("RGB").save(file, "JPEG")
    (photos / "cut.jpg").write_bytes(file.getvalue()[:-2])
    add_truth(project.folder / "truth.csv", {str(photos / "cut.jpg"): "cat"})
    assert alloop("pool", "add", photos, "-C", project.folder).code == 0
    refused = alloop("pool", "check", "-C", project.folder)
    assert "cut.jpg\ttruncated or damaged" in refused.out
    assert '[pool] truncated = "accept"' in refused.out

    write_settings(project, pool={"truncated": "accept"}, loop={"batch_size": 12})
    checked = alloop("pool", "check", "-C", project.folder)

    assert checked.out == "13 images, 0 of them missing; 0 files could not be read.\n"
    for _ in range(2):
        assert alloop("run", "-C", project.folder).code == 0
    assert alloop("status", "-C", project.folder, "--json").data["pool"]["labeled"] == 13
    assert alloop("pool", "check", "-C", project.folder).out == checked.out  # it could be trained on


def test_pillow_prints_nothing_between_our_lines(tmp_path: Path):
    (tmp_path / "bands.tif").write_bytes(tiff(12, 8))
    code = "import sys, alloop.pool.ingest as i; print(i.inspect_file(sys.argv[1], 999).reason)"
    command = [sys.executable, "-c", code, tmp_path / "bands.tif"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "a TIFF of 12 bands" in done.stdout
    assert done.stderr == ""
