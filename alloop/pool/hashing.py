"""Perceptual fingerprint of an image, by which near copies are recognized.

A fingerprint is 112 characters: a 64-bit pHash as 16 hex digits, then 72 bytes in URL-safe base64: an 8 x 8 thumbnail
of luma (rows first) and 2 x 2 thumbnails of Cb and of Cr. `near_duplicates` compares them.
"""

import base64
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

LENGTH = 112  # characters of a fingerprint
LUMA, THUMBNAIL = 64, 72  # bytes of luma, and of the whole thumbnail; the rest is chroma
_ENOUGH = 256  # pixels of the shorter side
_SIDE = 32  # pixels of the square that a fingerprint is made of
# The 8 lowest cosine waves of 32 pixels [8, 32] (DCT-II), in whole numbers.
_WAVES = np.rint(2**14 * np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * np.arange(_SIDE) + 1)))


def needed_size(width: int, height: int) -> tuple[int, int]:
    """Return the width and height at which an image is looked at for its fingerprint; see `pixels.decode_enough`.

    A trunk needs about as much, so that large photos are decoded once for both.
    """
    shorter = min(width, height)
    return _ENOUGH * width // shorter, _ENOUGH * height // shorter


def fingerprint(image: Image.Image, shown: tuple[float, float, float, float] | None = None) -> str:
    """Return the fingerprint of an upright RGB image: 112 characters, see the top of this file.

    Args:
        image: The image, at a resolution that is enough for `needed_size`.
        shown: Left, top, right and bottom edge of the part that shows the picture; None: all of it.
    """
    # Small images keep their pixels. Of large ones, whole blocks of pixels are averaged first (a gap of 1).
    method = Image.Resampling.BOX if min(image.size) < _SIDE else Image.Resampling.BILINEAR
    small = image.resize((_SIDE, _SIDE), method, shown, reducing_gap=1.0).convert("YCbCr")
    luma = np.frombuffer(small.tobytes(), np.uint8)[::3].reshape(_SIDE, _SIDE)
    cells, colors = small.reduce(_SIDE // 8).tobytes(), small.reduce(_SIDE // 2).tobytes()
    thumbnail = cells[::3] + colors[1::3] + colors[2::3]
    return _phash(luma).hex() + base64.urlsafe_b64encode(thumbnail).decode()


def _phash(luma: npt.NDArray[np.uint8]) -> bytes:
    """Return the pHash of a small image [32, 32]: which of its 8 x 8 lowest frequencies are above their median.

    All numbers are whole and below 2**53. No processor rounds them, so plain pictures have the same bits everywhere.
    """
    frequencies = (_WAVES @ luma @ _WAVES.T).ravel()
    ordered = np.sort(frequencies)
    return np.packbits(2 * frequencies > ordered[31] + ordered[32]).tobytes()


def at_depth(phash: str, own: int | None, depth: int | None) -> str:
    """Convert a fingerprint from an image's own depth to the pool's depth, where its thumbnail is darker."""
    if own is None or depth is None or own == depth:
        return phash
    factor = ((1 << own) - 1) / ((1 << depth) - 1)
    thumbnail = parse([phash])[1][0].astype(np.float64)
    thumbnail[:LUMA] *= factor
    thumbnail[LUMA:] = 128 + (thumbnail[LUMA:] - 128) * factor
    return phash[:16] + base64.urlsafe_b64encode(np.floor(thumbnail + 0.5).astype(np.uint8).tobytes()).decode()


def bits_apart(one: str, other: str) -> int:
    """Count the bits in which the pHashes of two fingerprints differ."""
    return (int(one[:16], 16) ^ int(other[:16], 16)).bit_count()


def parse(phashes: Sequence[str]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Read fingerprints: pHashes as numbers [N], and thumbnails [N, 72] of 64 luma and 8 chroma cells.

    Raises:
        ValueError: A text is not a fingerprint.
    """
    for phash in phashes:
        if len(phash) != LENGTH:
            raise ValueError(f"a fingerprint has {LENGTH} characters, this one {len(phash)}")
    # The base64 of 72 bytes needs no padding, so that texts in a row are one text.
    thumbnails = base64.urlsafe_b64decode("".join(phash[16:] for phash in phashes))
    hashes = np.frombuffer(bytes.fromhex("".join(phash[:16] for phash in phashes)), dtype=">u8")
    return hashes.astype(np.uint64), np.frombuffer(thumbnails, dtype=np.uint8).reshape(-1, THUMBNAIL)
