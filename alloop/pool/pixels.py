"""Bytes of an image file → upright RGB pixels. The one definition of what an image looks like to alloop.

Pillow is the reference. Orientation from EXIF is applied, transparency lies on white, and wide ranges are scaled to
8 bits, never clipped. Knows nothing of torch.

An image with more than 8 bits a channel is called deep. Its file does not say which value is white: cameras store 10,
12 or 14 bits in 16. `depth_of` gives the number of bits that an image needs; the caller passes the depth that all
images share.

A trunk looks at far fewer pixels than a camera stores. `decode_enough` lets the JPEG decoder itself reduce a large
photo, to 1/2, 1/4 or 1/8 in each direction, while at least twice the needed resolution is left for resizing.
"""

import contextlib
import dataclasses
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from alloop.pool import formats

# It logs what it cannot read, too; without any handler Python would print that between our own lines.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_METADATA = 2**26  # bytes of texts and color profile in a PNG: editing programs keep a picture's history in them
_PHOTOMETRIC = 0x0106  # TIFF tag; 0: zero is white
_ORIENTATION = 0x0112  # EXIF tag; value 1 is upright
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow keeps the upper byte of deep colors only. Reading the same file in the other byte order gives the lower one.
# libtiff hands over numbers in the machine's own order (N).
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_GRAY_ALPHA = "LA;16B"  # Pillow has no other byte order for it; its four bytes a pixel are read unchanged
_FULL = 16  # bits of a deep image whose depth is not known

SPARE = 2  # a reduced image keeps at least so many times the needed width and height
_SWAPPED, _FROM_LEFT, _FROM_TOP = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)  # EXIF orientations; see `_shown`

Box = tuple[float, float, float, float]  # left, top, right and bottom edge of a part of an image, in pixels
Needed = Callable[[int, int], tuple[int, int]]  # width and height of an upright image → those it will be resized to
_Values = npt.NDArray[np.int64]  # values of a deep image, [H, W] or [H, W, 3 or 4]; alpha has 16 bits


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """Reduction by the decoder for an image of an upright size."""

    size: tuple[int, int]
    scale: int
    is_plain: bool


_Loaded = tuple[Image.Image, _Plan]


class UnreadableImage(Exception):
    """These bytes cannot become pixels; the message is the reason in words. Callers add the file's name."""


def decode(
    data: bytes, max_pixels: int | None = None, depth: int | None = None, *, may_be_cut: bool = False
) -> tuple[Image.Image, str, str]:
    """Decode all of an image file's first frame.

    Args:
        data: The file's bytes.
        max_pixels: Width times height above which the image is refused before it is decoded; None: any size.
        depth: Number of bits at which a deep image is read: their largest number is white. None: 16.
        may_be_cut: Read a file that ends too early as far as it goes; the rest is gray or black.

    Returns:
        The upright RGB image, and the format ("JPEG") and mode ("CMYK") that the file had.

    Raises:
        UnreadableImage: Empty, not an image, truncated, damaged, or larger than `max_pixels`; its values are negative,
            beyond `depth`, or floats beyond [0, 1].
    """
    with _decoding(data, max_pixels, may_be_cut) as (opened, _):
        return _upright_rgb(data, opened, depth), opened.format or "", opened.mode


@dataclasses.dataclass(frozen=True, slots=True)
class Reduced:
    """An upright RGB image at a resolution that is enough for resizing it.

    Attributes:
        shown: Part of `image` that shows the picture. Where the reduction does not divide the width or height, the last
            column or row before turning shows less of the picture than the others.
        size: Width and height of the whole upright image.
        scale: Reduction of both: 1, 2, 4 or 8.
        is_plain: Whether the decoder can reduce the image.
    """

    image: Image.Image
    shown: Box
    size: tuple[int, int]
    scale: int
    is_plain: bool

    def suits(self, needed: Needed) -> bool:
        """Return whether `decode_enough` would give the same for this need."""
        return self.scale == (_scale(self.size, needed) if self.is_plain else 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Looked:
    """An image at its own depth.

    Attributes:
        reduced: Its pixels, at a resolution that is enough.
        format, mode: Format and color mode of the file, such as "JPEG" and "CMYK".
        depth: Number of bits that hold the image's largest value; None unless it is deep.
    """

    reduced: Reduced
    format: str
    mode: str
    depth: int | None


def look(
    data: bytes, max_pixels: int | None = None, needed: Needed | None = None, *, may_be_cut: bool = False
) -> Looked:
    """Decode an image file's first frame at its own depth: whole, or as `decode_enough` does if `needed` is given.

    Reduced or not, every byte of the picture is read, so that the same files are refused. Other arguments and errors
    are those of `decode`.
    """
    with _decoding(data, max_pixels, may_be_cut, needed) as (opened, plan):
        values = _deep_values(data, opened)
        depth = None if values is None else depth_of(int(values[..., :3].max() if values.ndim > 2 else values.max()))
        image = to_rgb(opened) if values is None or depth is None else _at_depth(opened, values, depth)
        return Looked(_reduced(_upright(image, opened), opened, plan), opened.format or "", opened.mode, depth)


def decode_enough(data: bytes, needed: Needed, depth: int | None = None, *, may_be_cut: bool = False) -> Reduced:
    """Decode an image file's first frame at a resolution that is enough for resizing it.

    Plain JPEG (8 bits, YCbCr or gray) is decoded at 1/2, 1/4 or 1/8 if twice the needed width and height are left: the
    decoder leaves out the upper frequencies, which saves most of its work. Every other image is decoded whole.

    Args:
        data: The file's bytes.
        needed: Returns the width and height to which an upright image of a width and height will be resized.
        depth: Number of bits at which a deep image is read, as in `decode`.
        may_be_cut: Read a file that ends too early as far as it goes, as in `decode`.

    Raises:
        UnreadableImage: As in `decode`.
    """
    with _decoding(data, None, may_be_cut, needed) as (opened, plan):
        return _reduced(_upright_rgb(data, opened, depth), opened, plan)


def depth_of(peak: int) -> int:
    """Smallest even number of bits, at least 8, that holds a deep image's largest value. Devices use even numbers."""
    return max(8, peak.bit_length() + peak.bit_length() % 2)


def may_be_deep(data: bytes) -> bool:
    """Return whether the header says that an image is deep; False if the file cannot be opened."""
    try:
        with _quiet_pillow(), Image.open(io.BytesIO(data)) as image:
            return _is_deep_gray(image) or _deep_color(image) is not None
    except Exception:  # damaged files make Pillow's plugins raise nearly anything
        return False


def peek(data: bytes, max_pixels: int) -> bool:
    """Look at an image file's header, which is much faster than `look`, and return whether the image is deep.

    Raises:
        UnreadableImage: The file cannot be opened, or the image is larger than `max_pixels`.
    """
    if not data:
        raise UnreadableImage("empty file")
    formats.prepare(data)
    with _quiet_pillow():
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise UnreadableImage(formats.why_unreadable(data)) from error
        except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
            raise UnreadableImage(_why(error)) from error
        with image:
            _check_size(image, max_pixels)
            return _is_deep_gray(image) or _deep_color(image) is not None


def encode(image: Image.Image) -> bytes:
    """Return an image in memory as the bytes of a file, so that `decode` gives it the pixels that its own file has.

    Gray images with more than 8 bits keep all of them. Of such colors, Pillow itself keeps 8 bits.

    Raises:
        UnreadableImage: It has no pixels, its file is closed, cut or damaged, or its values cannot become pixels.
    """
    with _quiet_pillow():
        try:
            image.load()
        except Exception as error:  # an opened file is read now, and damaged files make plugins raise nearly anything
            raise UnreadableImage(_why(error)) from error
        if 0 in image.size:
            raise UnreadableImage("it has no pixels")
        try:
            if not _is_deep_gray(image):
                return encode_values(np.asarray(_upright(to_rgb(image), image)))
            if _zero_is_white(image):
                raise UnreadableImage("its zero is white, which is known from its file only; give the file")
            buffer = io.BytesIO()
            upright = _upright(image, image)
            Image.fromarray(np.asarray(upright)).save(buffer, "TIFF")
            return buffer.getvalue()
        except ValueError as error:
            raise UnreadableImage(f"pixels of the kind {image.mode} cannot be made RGB: {error}") from error


def encode_values(values: npt.NDArray[np.uint8]) -> bytes:
    """Return RGB values [H, W, 3] or gray values [H, W] as the bytes of a file."""
    kind = b"P6" if values.ndim > 2 else b"P5"
    return b"%s %d %d 255\n" % (kind, values.shape[1], values.shape[0]) + np.ascontiguousarray(values).tobytes()


@contextlib.contextmanager
def _decoding(data: bytes, max_pixels: int | None, may_be_cut: bool, needed: Needed | None = None) -> Iterator[_Loaded]:
    """Yield the loaded image, and how far it is reduced.

    Raises:
        UnreadableImage: The file cannot be decoded, or its values cannot become pixels.
    """
    if not data:
        raise UnreadableImage("empty file")
    with _quiet_pillow():
        image, plan = _load(data, max_pixels, may_be_cut, needed)
        try:
            yield image, plan
        except ValueError as error:
            raise UnreadableImage(f"pixels of the kind {image.mode} cannot be made RGB: {error}") from error


def _load(data: bytes, max_pixels: int | None, may_be_cut: bool, needed: Needed | None) -> _Loaded:
    formats.prepare(data)
    try:
        return _open(data, max_pixels, needed)
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(formats.why_unreadable(data)) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"too large inside (decompression bomb?): {error}") from error
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        if not _is_cut(error) or not may_be_cut:
            raise UnreadableImage(_why(error)) from error
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # until this image is decoded
    try:
        return _open(data, max_pixels, needed)
    except Exception as error:  # too little is left
        raise UnreadableImage(f"truncated or damaged: {str(error) or type(error).__name__}") from error


def _open(data: bytes, max_pixels: int | None, needed: Needed | None) -> _Loaded:
    image = Image.open(io.BytesIO(data))
    _check_size(image, max_pixels)
    if image.format == "PNG" and not ImageFile.LOAD_TRUNCATED_IMAGES:
        _check_png(data)
    plan = _reduce(image, needed)
    image.load()
    return image, plan


def _is_plain_jpeg(image: Image.Image) -> TypeGuard[JpegImagePlugin.JpegImageFile]:
    """Return whether an image that is not loaded yet is a JPEG of 8 bits in YCbCr or gray."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode not in ("RGB", "L"):
        return False
    # Colors that are stored as RGB say so in Adobe's marker or in the names of their channels.
    return image.info.get("adobe_transform") != 0 and bytes(layer[0] for layer in image.layer) != b"RGB"


def _reduce(image: Image.Image, needed: Needed | None) -> _Plan:
    """Let the decoder reduce an image that is not loaded yet, as far as the needed size allows."""
    size = image.size[::-1] if _orientation(image) in _SWAPPED else image.size
    if needed is None or not _is_plain_jpeg(image):
        return _Plan(size, 1, is_plain=False)
    scale = _scale(size, needed)
    if scale > 1:
        image.draft(image.mode, (image.width // scale, image.height // scale))
    return _Plan(size, scale, is_plain=True)


def _scale(size: tuple[int, int], needed: Needed) -> int:
    """Return the largest reduction of an upright image that leaves enough; 1 if there is none."""
    spare = min(have // (SPARE * need) for have, need in zip(size, needed(*size), strict=True))
    return max(scale for scale in (1, 2, 4, 8) if scale <= max(1, spare))


def _reduced(image: Image.Image, opened: Image.Image, plan: _Plan) -> Reduced:
    """Describe an upright image that was decoded by a plan."""
    return Reduced(image, _shown(plan, image.size, _orientation(opened)), plan.size, plan.scale, plan.is_plain)


def _shown(plan: _Plan, size: tuple[int, int], orientation: int) -> Box:
    """Return the part of an upright image of this size that shows the picture.

    What the part leaves out lay at the right and at the bottom, and turning brings it to other sides.
    """
    width, height = plan.size[0] / plan.scale, plan.size[1] / plan.scale
    left = size[0] - width if orientation in _FROM_LEFT else 0.0
    top = size[1] - height if orientation in _FROM_TOP else 0.0
    return left, top, left + width, top + height


def _is_cut(error: Exception) -> bool:
    """Return whether an error means that the file ends too early, as far as Pillow tells that from damage."""
    return isinstance(error, OSError | SyntaxError) and "truncated" in str(error).lower()


def _why(error: Exception) -> str:
    if isinstance(error, ValueError) and "PngImagePlugin.MAX_TEXT" in str(error):
        return f"its texts or its color profile have more than {_METADATA >> 20} MiB; save it without metadata"
    way_out = '; [pool] truncated = "accept" reads such files as far as they go' if _is_cut(error) else ""
    return f"truncated or damaged: {str(error) or type(error).__name__}{way_out}"


def _check_size(image: Image.Image, max_pixels: int | None) -> None:
    n_pixels = image.width * image.height
    if max_pixels is not None and n_pixels > max_pixels:
        raise UnreadableImage(
            f"too large (decompression bomb?): {image.width} x {image.height} = {n_pixels} pixels, "
            f"and [pool] max_pixels is {max_pixels}"
        )
    # From here on for what the header does not tell: the images inside an icon.
    Image.MAX_IMAGE_PIXELS = max_pixels


def _check_png(data: bytes) -> None:
    """Check every chunk's CRC and that the last one is there; load() looks at neither."""
    with Image.open(io.BytesIO(data)) as image:
        image.verify()


def _upright_rgb(data: bytes, opened: Image.Image, depth: int | None) -> Image.Image:
    values = None if depth is None else _deep_values(data, opened)
    image = to_rgb(opened) if values is None or depth is None else _at_depth(opened, values, depth)
    return _upright(image, opened)


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Turn an image upright, by the EXIF orientation of the opened file."""
    # Pillow's own exif_transpose also rewrites the EXIF block, which costs time and fails where the block is odd.
    transpose = _TRANSPOSES.get(_orientation(opened))
    return image if transpose is None else image.transpose(transpose)


def _orientation(opened: Image.Image) -> int:
    try:
        orientation = opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # an unreadable EXIF block says nothing about orientation, and pixels do not depend on it
        return 1
    return orientation if isinstance(orientation, int) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's → RGB, 8 bits a channel.

    Transparency is composited on white. Deep images are taken to fill 16 bits, whose range is mapped to 0..255,
    rounded. Floats must lie in [0, 1], which is mapped likewise.
    """
    if _is_deep_gray(image):
        return _at_depth(image, _gray_values(image), _FULL)
    if image.mode == "F":
        return _gray(_unit_floats(image) * 255)
    if image.mode == "RGBX":  # four bytes a pixel, the last one unused
        return image.convert("RGB")
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


# -- deep images ------------------------------------------------------------------------------------------------------


def _is_deep_gray(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _deep_color(image: Image.Image) -> str | None:
    """Return Pillow's name of a file's layout of deep colors, such as "RGB;16B"; None if its colors are not deep."""
    layouts = {tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0] for tile in _tiles(image)}
    layout = str(next(iter(layouts))) if len(layouts) == 1 else ""
    return layout if layout[:-1] in ("RGB;16", "RGBA;16") or layout == _GRAY_ALPHA else None


def _tiles(image: Image.Image) -> Sequence[ImageFile._Tile]:
    return image.tile if isinstance(image, ImageFile.ImageFile) else ()


def _deep_values(data: bytes, image: Image.Image) -> _Values | None:
    """Return the values stored in the file; None for an image that is not deep."""
    if _is_deep_gray(image):
        return _gray_values(image)
    with Image.open(io.BytesIO(data)) as again:  # a loaded image has forgotten its layout
        layout = _deep_color(again)
        if layout is None or not isinstance(again, ImageFile.ImageFile):
            return None
        other = "RGBA" if layout == _GRAY_ALPHA else layout[:-1] + _OTHER_BYTE[layout[-1]]
        again.tile = [_with_layout(tile, other) for tile in again.tile]
        low = np.asarray(again).astype(np.int64)
    if layout == _GRAY_ALPHA:
        gray, alpha = low[..., 0] << 8 | low[..., 1], low[..., 2] << 8 | low[..., 3]
        return np.stack([gray, gray, gray, alpha], axis=-1)
    return np.asarray(image).astype(np.int64) << 8 | low


def _with_layout(tile: ImageFile._Tile, layout: str) -> ImageFile._Tile:
    return tile._replace(args=layout if isinstance(tile.args, str) else (layout, *(tile.args or ())[1:]))


def _gray_values(image: Image.Image) -> _Values:
    values = np.asarray(image).astype(np.int64)
    if (least := int(values.min())) < 0:
        raise UnreadableImage(
            f"holds numbers below 0 (the smallest is {least}; Pillow also reads numbers from 2147483648 on as "
            "negative), and it is not known which number is black; add the same number to all images so that 0 is "
            "black, and save them again"
        )
    return values


def _zero_is_white(image: Image.Image) -> bool:
    """Return whether a TIFF says that zero is white, as X-ray devices write. Pillow applies this to 8 bits only."""
    return bool(getattr(image, "tag_v2", {}).get(_PHOTOMETRIC, 1) == 0)


def _unit_floats(image: Image.Image) -> npt.NDArray[np.float64]:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadableImage("holds pixels that are not finite numbers (nan or inf)")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise UnreadableImage(
            f"holds floats from {low:g} to {high:g}, and it is not known which are black and white; scale all images "
            "in the same way to [0, 1], or save integers"
        )
    return values


def _at_depth(image: Image.Image, values: _Values, depth: int) -> Image.Image:
    """Convert deep values to RGB: 0 is black and the largest number of `depth` bits white, or the reverse; rounded."""
    white = (1 << depth) - 1
    colors, alpha = (values[..., :3], values[..., 3:]) if values.ndim > 2 else (values, values[..., :0])
    if (peak := int(colors.max())) > white:
        raise UnreadableImage(f"holds {peak}, which needs more than {depth} bits; run `alloop pool add` on it")
    scaled = _rounded(colors * (255 / white))
    if values.ndim == 2:
        return Image.fromarray(255 - scaled if _zero_is_white(image) else scaled).convert("RGB")
    if alpha.size:
        return _on_white(Image.fromarray(np.concatenate([scaled, _rounded(alpha / 257)], axis=-1)))
    if isinstance(
        key := image.info.get("transparency"), tuple
    ):  # the one color that is transparent, as the file has it
        scaled[(colors == np.array(key)).all(axis=-1)] = 255
    return Image.fromarray(scaled)


def _gray(values: npt.NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(_rounded(values)).convert("RGB")


def _rounded(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    rounded: npt.NDArray[np.uint8] = np.floor(values + 0.5).astype(np.uint8)
    return rounded


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Switch off Pillow's own limits and warnings, since alloop checks and reports itself.

    These settings are global to a process, so decoding in parallel needs processes, not threads.
    """
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    is_lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on damage, metadata, colors; deprecations are heard
        Image.MAX_IMAGE_PIXELS = None
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # the caller's program may have allowed cut files for itself
        PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _METADATA
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = is_lenient
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before
