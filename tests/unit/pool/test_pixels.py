"""Pixels that alloop reads from every format and mode, compared with values worked out by hand."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alloop.pool import pixels

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Structure in every corner, so that a missing part shows."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def rows(data: bytes) -> list[list[tuple[int, ...]]]:
    image, _, _ = pixels.decode(data)
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def one(mode: str, value: Any, file_format: str = "PNG", **options: Any) -> tuple[int, ...]:
    return rows(encode(Image.new(mode, (3, 2), value), file_format, **options))[0][0]


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_formats_keep_every_pixel(file_format):
    image = photo()

    decoded, found, mode = pixels.decode(encode(image, file_format))

    assert (found, mode) == (file_format, "RGB")
    assert np.array_equal(np.asarray(decoded), np.asarray(image))


def test_lossless_webp_keeps_every_pixel():
    assert np.array_equal(np.asarray(pixels.decode(encode(photo(), "WEBP", lossless=True))[0]), np.asarray(photo()))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "GIF", "JPEG2000"])
def test_formats_that_change_pixels_stay_near_a_plain_color(file_format):
    assert one("RGB", (200, 100, 50), file_format) == pytest.approx((200, 100, 50), abs=6)


def test_grayscale_has_three_equal_channels():
    assert one("L", 77) == (77, 77, 77)


def test_one_bit_is_black_or_white():
    assert (one("1", 0), one("1", 1)) == ((0, 0, 0), WHITE)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (128, 0), (129, 1), (257, 1), (32768, 128), (65535, 255)])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_and_rounded_never_clipped(value, expected, file_format):
    # 65535 = 255 x 257, so a value becomes value / 257, rounded: 128 / 257 = 0.498, 129 / 257 = 0.502
    image = Image.fromarray(np.full((2, 3), value, dtype=np.uint16))

    assert rows(encode(image, file_format))[1][2] == (expected,) * 3


def test_big_endian_sixteen_bit_tiff_is_scaled_too():
    # A minimal TIFF by hand: 1 x 1, 16 bits, black is zero, one strip of two bytes at offset 8.
    entries = [(256, 3, 1), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 1)]
    entries.append((279, 4, 2))
    fields = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in entries
    )
    data = b"MM\0*" + struct.pack(">I", 10) + struct.pack(">H", 0x8080) + struct.pack(">H", 9) + fields + b"\0" * 4

    assert rows(data) == [[(128, 128, 128)]]  # 0x8080 = 32896 = 128 x 257


def test_floats_between_zero_and_one_are_scaled():
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))

    # 0.5 x 255 = 127.5, rounded up
    assert [pixel[0] for pixel in rows(encode(image, "TIFF"))[0]] == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "said"),
    [([0.0, 51.0, 255.0], "from 0 to 255"), ([-1.0, 0.0, 1.0], "from -1 to 1"), ([0.0, 1.5], "from 0 to 1.5")],
)
def test_floats_of_another_range_are_refused_as_each_image_would_have_a_white_of_its_own(values, said):
    image = Image.fromarray(np.array([values], dtype=np.float32))

    with pytest.raises(pixels.UnreadableImage, match=rf"holds floats {said}.*scale all images in the same way"):
        pixels.decode(encode(image, "TIFF"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_float_image_with_nan_or_inf_is_refused(value):
    image = Image.fromarray(np.array([[0.5, value]], dtype=np.float32))

    with pytest.raises(pixels.UnreadableImage, match="not finite"):
        pixels.decode(encode(image, "TIFF"))


def test_thirty_two_bit_integers_are_taken_as_sixteen_bit_where_they_fit():
    assert rows(encode(Image.fromarray(np.array([[0, 257, 65535]], dtype=np.int32)), "TIFF")) == [
        [(0, 0, 0), (1, 1, 1), (255, 255, 255)]
    ]


@pytest.mark.parametrize(
    ("peak", "depth"),
    [
        (0, 8),
        (255, 8),
        (256, 10),
        (1023, 10),
        (1024, 12),
        (4095, 12),
        (4096, 14),
        (16383, 14),
        (16384, 16),
        (65535, 16),
    ],
)
def test_the_depth_is_the_smallest_that_holds_the_largest_value(peak, depth):
    image = Image.fromarray(np.array([[0, peak]], dtype=np.uint16))

    assert pixels.depth_of(peak) == depth
    assert pixels.look(encode(image, "PNG")).depth == depth
    assert pixels.look(encode(image, "TIFF")).depth == depth


def test_a_depth_above_sixteen_bits_is_an_even_number_too():
    image = Image.fromarray(np.array([[0, 2**20]], dtype=np.int32))

    assert pixels.look(encode(image, "TIFF")).depth == 22


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F"])
def test_eight_bits_and_floats_have_no_depth_and_a_depth_changes_nothing(mode):
    data = encode(Image.new(mode, (3, 2)), "TIFF")

    assert pixels.look(data).depth is None
    assert not pixels.may_be_deep(data)
    assert np.array_equal(*(np.asarray(pixels.decode(data, depth=depth)[0]) for depth in (None, 12)))


@pytest.mark.parametrize("value", [0, 8, 2048, 4095])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_the_largest_number_of_the_depth_is_white(value, file_format):
    # 12 bits: v x 255 / 4095, rounded: 8 becomes 0.498, 2048 becomes 127.53
    data = encode(Image.fromarray(np.full((2, 3), value, dtype=np.uint16)), file_format)
    expected = {0: 0, 8: 0, 2048: 128, 4095: 255}[value]

    assert np.asarray(pixels.decode(data, depth=12)[0])[1, 2].tolist() == [expected] * 3
    assert pixels.may_be_deep(data)


@pytest.mark.parametrize("bits", [8, 16])
def test_zero_is_white_where_a_tiff_says_so(bits):
    strip = np.array([0, 200 if bits == 8 else 3213], dtype=f"<u{bits // 8}").tobytes()
    entries = [(256, 3, 2), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, 0), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 3, 1), (279, 4, len(strip))]
    fields = b"".join(
        struct.pack("<HHI", tag, kind, 1) + (struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value))
        for tag, kind, value in entries
    )
    data = b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", 9) + fields + b"\0" * 4

    # 3213 x 255 / 4095 = 200.08
    assert np.asarray(pixels.look(data).reduced.image)[0, :, 0].tolist() == [255, 55]
    assert np.asarray(pixels.decode(data, depth=12)[0])[0, :, 0].tolist() == [255, 55]


def deep_png(values, interlaced: bool = False, transparent: tuple[int, ...] = ()) -> bytes:
    """A PNG of 16 bits a channel, by hand: Pillow writes none with colors."""
    height, width, n = values.shape
    lines = b"".join(b"\0" + values[y].astype(">u2").tobytes() for y in range(height))

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[n], 0, 0, interlaced)
    key = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def deep_tiff(values, order: str, compressed: bool = False) -> bytes:
    """An RGB TIFF of 16 bits a channel, one strip: by hand, as Pillow writes none."""
    height, width, _ = values.shape
    strip = values.astype(f"{order}u2").tobytes()
    strip = zlib.compress(strip) if compressed else strip
    entries = [(256, 3, width), (257, 3, height), (259, 3, 8 if compressed else 1), (262, 3, 2), (273, 4, 14)]
    entries += [(277, 3, 3), (278, 3, height), (279, 4, len(strip))]
    fields = [
        struct.pack(f"{order}HHI", tag, kind, 1)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value))
        for tag, kind, value in entries
    ]
    fields.insert(2, struct.pack(f"{order}HHII", 258, 3, 3, 8))
    start = 14 + len(strip)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(f"{order}I", start) + struct.pack(f"{order}HHH", 16, 16, 16)
    return head + strip + struct.pack(f"{order}H", len(fields)) + b"".join(fields) + b"\0" * 4


COLORS = np.array([[[0, 2048, 4095], [8, 9, 4000]], [[1, 2, 3], [4095, 0, 255]]], dtype=np.uint16)
AS_TWELVE = [[[0, 128, 255], [0, 1, 249]], [[0, 0, 0], [255, 0, 16]]]  # v x 255 / 4095, rounded


@pytest.mark.parametrize(
    "data",
    [
        deep_png(COLORS),
        deep_tiff(COLORS, "<"),
        deep_tiff(COLORS, ">"),
        deep_tiff(COLORS, "<", compressed=True),
        deep_tiff(COLORS, ">", compressed=True),
    ],
)
def test_deep_colors_keep_their_lower_byte(data):
    looked = pixels.look(data)

    assert (looked.mode, looked.depth) == ("RGB", 12)
    assert np.asarray(looked.reduced.image).tolist() == AS_TWELVE
    assert np.asarray(pixels.decode(data, depth=12)[0]).tolist() == AS_TWELVE
    assert np.asarray(pixels.decode(data, depth=16)[0]).max() == 16  # 4095 / 257, rounded


def test_deep_colors_and_grays_lie_on_white_where_they_are_transparent():
    alpha = np.array([[[0], [65535]], [[65535], [65535]]], dtype=np.uint16)
    expected = [[[255] * 3, AS_TWELVE[0][1]], AS_TWELVE[1]]

    assert (
        np.asarray(pixels.look(deep_png(np.concatenate([COLORS, alpha], axis=-1))).reduced.image).tolist() == expected
    )
    gray = np.concatenate([COLORS[..., 2:], alpha], axis=-1)
    assert np.asarray(pixels.look(deep_png(gray)).reduced.image)[..., 0].tolist() == [[255, 249], [0, 16]]
    keyed = pixels.look(deep_png(COLORS, transparent=(8, 9, 4000))).reduced.image
    assert np.asarray(keyed).tolist() == [[AS_TWELVE[0][0], [255] * 3], AS_TWELVE[1]]


@pytest.mark.parametrize("values", [[[-1, 5]], [[-(2**31), 0]]])
def test_numbers_below_zero_are_refused(values):
    data = encode(Image.fromarray(np.array(values, dtype=np.int32)), "TIFF")

    for read in (pixels.look, pixels.decode):
        with pytest.raises(
            pixels.UnreadableImage, match=rf"below 0 \(the smallest is {values[0][0]}|the smallest is -2147483648"
        ):
            read(data)


def test_a_value_beyond_the_depth_is_refused_not_clipped():
    data = encode(Image.fromarray(np.array([[0, 5000]], dtype=np.uint16)), "PNG")

    with pytest.raises(pixels.UnreadableImage, match="holds 5000, which needs more than 12 bits"):
        pixels.decode(data, depth=12)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_transparency_lies_on_white(file_format):
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}

    assert one("RGBA", (*RED, 0), file_format, **options) == WHITE
    assert one("RGBA", (*RED, 255), file_format, **options) == RED
    # A fifth of black on white: 255 x 4 / 5
    assert one("RGBA", (0, 0, 0, 51), file_format, **options) == (204, 204, 204)


def test_gray_with_alpha_lies_on_white():
    assert (one("LA", (0, 0)), one("LA", (0, 51)), one("LA", (9, 255))) == (WHITE, (204, 204, 204), (9, 9, 9))


def test_palette_colors_are_looked_up():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)

    assert rows(encode(image, "PNG")) == [[RED, BLUE]]


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_the_transparent_color_of_a_palette_becomes_white(file_format):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)

    assert rows(encode(image, file_format, transparency=0)) == [[WHITE, BLUE]]


def test_partly_transparent_palette_entries_are_mixed_with_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, *BLUE])
    image.putpixel((1, 0), 1)

    assert rows(encode(image, "PNG", transparency=bytes([51, 255]))) == [[(204, 204, 204), BLUE]]


def test_the_transparent_color_of_an_rgb_png_becomes_white():
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)

    assert rows(encode(image, "PNG", transparency=RED)) == [[WHITE, GREEN]]


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (0, 0, 0, 255), (255, 0, 0, 0)])
def test_cmyk_inks_absorb_their_complement(ink):
    expected = {(0, 0, 0, 0): WHITE, (0, 0, 0, 255): (0, 0, 0), (255, 0, 0, 0): (0, 255, 255)}[ink]

    assert one("CMYK", ink, "TIFF") == expected
    assert one("CMYK", ink, "JPEG", quality=100) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_only_the_first_frame_counts(file_format):
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)
    options = {"lossless": True} if file_format == "WEBP" else {}

    data = encode(first, file_format, save_all=True, append_images=[second], **options)

    assert rows(data)[0][0] == RED


# A 3 x 2 picture as it should be seen, and the stored pixels that each EXIF orientation says to turn into it.
UPRIGHT = [[RED, GREEN, BLUE], [WHITE, (0, 0, 0), (9, 9, 9)]]
(A, B, C), (D, E, F) = UPRIGHT
STORED = {
    1: [[A, B, C], [D, E, F]],
    2: [[C, B, A], [F, E, D]],  # mirrored left to right
    3: [[F, E, D], [C, B, A]],  # upside down
    4: [[D, E, F], [A, B, C]],  # mirrored top to bottom
    5: [[A, D], [B, E], [C, F]],  # rows and columns swapped
    6: [[C, F], [B, E], [A, D]],  # to be turned clockwise by a quarter
    7: [[F, C], [E, B], [D, A]],  # swapped about the other diagonal
    8: [[D, A], [E, B], [F, C]],  # to be turned counterclockwise by a quarter
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation, file_format):
    image = Image.fromarray(np.array(STORED[orientation], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}

    assert rows(encode(image, file_format, exif=exif, **options)) == UPRIGHT


def test_exif_orientation_of_a_jpeg_turns_width_and_height():
    exif = Image.Exif()
    exif[0x0112] = 6

    assert pixels.decode(encode(photo((64, 48)), "JPEG", exif=exif))[0].size == (48, 64)


def test_an_exif_block_of_rubbish_leaves_the_image_as_it_is():
    decoded, _, _ = pixels.decode(encode(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\xff\xff"))

    assert decoded.size == (64, 48)


TRUNCATED = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("GIF", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_deflate"}),
]


@pytest.mark.parametrize(("file_format", "options"), TRUNCATED)
def test_no_cut_of_a_file_passes_for_an_image_that_lacks_something(file_format, options):
    data = encode(photo((40, 30)), file_format, **options)
    whole = np.asarray(pixels.decode(data)[0])

    passed = []
    for length in [*range(1, len(data), 37), *range(len(data) - 16, len(data))]:
        try:
            decoded = np.asarray(pixels.decode(data[:length])[0])
        except pixels.UnreadableImage:
            continue
        passed.append(length)
        assert np.array_equal(decoded, whole), f"{length} of {len(data)} bytes gave other pixels"

    # What may be lost is a trailer without pixels; never as much as a twentieth of the file.
    assert all(length > 0.95 * len(data) for length in passed)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_half_a_file_is_called_truncated(file_format):
    data = encode(photo(), file_format)

    with pytest.raises(pixels.UnreadableImage, match="truncated"):
        pixels.decode(data[: len(data) // 2])


def test_a_png_with_a_flipped_bit_in_its_pixels_is_damaged():
    data = bytearray(encode(photo(), "PNG"))
    data[len(data) // 2] ^= 1

    with pytest.raises(pixels.UnreadableImage, match="damaged"):
        pixels.decode(bytes(data))


@pytest.mark.parametrize("lost", [12, 20])
def test_a_png_without_its_end_is_truncated_even_if_all_pixels_are_there(lost):
    data = encode(photo(), "PNG")  # ends with the twelve bytes of IEND

    with pytest.raises(pixels.UnreadableImage, match="truncated"):
        pixels.decode(data[:-lost])


def test_no_bytes_are_an_empty_file():
    with pytest.raises(pixels.UnreadableImage, match="empty"):
        pixels.decode(b"")


@pytest.mark.parametrize("data", [b"just words", b"\0" * 1000, b"%PDF-1.7 and so on", b"<svg></svg>"])
def test_what_is_not_an_image_is_said_not_to_be(data):
    with pytest.raises(pixels.UnreadableImage, match="not an image"):
        pixels.decode(data)


def test_too_many_pixels_are_refused_from_the_header_alone():
    # Given a header that promises a gigapixel, and not a byte of pixels
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 32768, 32768, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))

    with pytest.raises(pixels.UnreadableImage, match=r"1073741824 pixels, and \[pool\] max_pixels is 178956970"):
        pixels.decode(data, max_pixels=178_956_970)


def test_as_many_pixels_as_allowed_are_allowed():
    data = encode(photo((64, 48)), "PNG")

    assert pixels.decode(data, max_pixels=64 * 48)[0].size == (64, 48)
    with pytest.raises(pixels.UnreadableImage, match="64 x 48"):
        pixels.decode(data, max_pixels=64 * 48 - 1)


def test_a_limit_above_pillows_own_counts(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)

    assert pixels.decode(encode(photo(), "PNG"), max_pixels=10_000)[0].size == (64, 48)
    assert Image.MAX_IMAGE_PIXELS == 10
