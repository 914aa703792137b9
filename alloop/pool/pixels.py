"""Bytes of an image file → upright RGB pixels. The one definition of what an image looks like to alloop.

Pillow is the reference. Orientation from EXIF is applied, transparency lies on white, and wide ranges are scaled to
8 bits, never clipped. Knows nothing of torch.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from alloop.pool import formats

_METADATA = 2**26  # bytes of texts and color profile in a PNG: editing programs keep a picture's history in them
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


class UnreadableImage(Exception):
    """These bytes cannot become pixels; the message is the reason in words. Callers add the file's name."""


def decode(data: bytes, max_pixels: int | None = None) -> tuple[Image.Image, str, str]:
    """Decode all of an image file's first frame.

    Args:
        data: The file's bytes.
        max_pixels: Width times height above which the image is refused before it is decoded; None: any size.

    Returns:
        The upright RGB image, and the format ("JPEG") and mode ("CMYK") that the file had.

    Raises:
        UnreadableImage: Empty, not an image, truncated, damaged, or larger than `max_pixels`.
    """
    if not data:
        raise UnreadableImage("empty file")
    with _quiet_pillow():
        image = _load(data, max_pixels)
        try:
            return to_rgb(_upright(image)), image.format or "", image.mode
        except ValueError as error:
            raise UnreadableImage(f"pixels of the kind {image.mode} cannot be made RGB: {error}") from error


def _load(data: bytes, max_pixels: int | None) -> Image.Image:
    formats.prepare(data)
    try:
        image = Image.open(io.BytesIO(data))
        _check_size(image, max_pixels)
        if image.format == "PNG":
            _check_png(data)
        image.load()
        return image
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(formats.why_unreadable(data)) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"too large inside (decompression bomb?): {error}") from error
    except ValueError as error:
        if "PngImagePlugin.MAX_TEXT" not in str(error):
            raise UnreadableImage(f"truncated or damaged: {error}") from error
        raise UnreadableImage(
            f"its texts or its color profile take more than {_METADATA >> 20} MiB; save it without metadata"
        ) from error
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        raise UnreadableImage(f"truncated or damaged: {str(error) or type(error).__name__}") from error


def _check_size(image: Image.Image, max_pixels: int | None) -> None:
    n_pixels = image.width * image.height
    if max_pixels is not None and n_pixels > max_pixels:
        raise UnreadableImage(
            f"too large (decompression bomb?): {image.width} x {image.height} = {n_pixels} pixels, "
            f"and pool.max_pixels is {max_pixels}"
        )
    # From here on for what the header does not tell: the images inside an icon.
    Image.MAX_IMAGE_PIXELS = max_pixels


def _check_png(data: bytes) -> None:
    """Check every chunk's CRC and that the last one is there; load() looks at neither."""
    with Image.open(io.BytesIO(data)) as image:
        image.verify()


def _upright(image: Image.Image) -> Image.Image:
    # Pillow's own exif_transpose also rewrites the EXIF block, which costs time and fails where the block is odd.
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # an unreadable EXIF block says nothing about orientation, and pixels do not depend on it
        orientation = 1
    transpose = _TRANSPOSES.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's → RGB, 8 bits a channel.

    Transparency is composited on white. 16-bit gray maps 0..65535 to 0..255, rounded. 32-bit integers and floats have
    no agreed range; `_scale` says which one is assumed.
    """
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image).astype(np.float64) * (255 / 65535))
    if image.mode in ("I", "F"):
        return _gray(_scale(np.asarray(image).astype(np.float64), is_float=image.mode == "F"))
    if image.mode == "RGBX":  # four bytes a pixel, the last one unused
        return image.convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _scale(values: npt.NDArray[np.float64], is_float: bool) -> npt.NDArray[np.float64]:
    """Bring numbers without an agreed range to [0, 255].

    Floats within [0, 1], else within [0, 255], are taken as that range; then, for integers first of all, [0, 65535].
    What fits none of these is stretched from its own least to its own greatest value.
    """
    if not np.isfinite(values).all():
        raise UnreadableImage("holds pixels that are not finite numbers (nan or inf)")
    low, high = float(values.min()), float(values.max())
    for limit in (1.0, 255.0, 65535.0) if is_float else (65535.0,):
        if low >= 0 and high <= limit:
            return values * (255 / limit)
    return (values - low) * (255 / (high - low or 1.0))


def _gray(values: npt.NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.floor(values + 0.5).astype(np.uint8)).convert("RGB")


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow has limits of its own and warns where we report.

    All these settings are global to a process, so decoding belongs in processes, not in threads.
    """
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on damage, metadata, colors; deprecations are heard
        Image.MAX_IMAGE_PIXELS = None
        PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _METADATA
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before
