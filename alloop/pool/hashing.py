"""Perceptual fingerprint of an image, by which near copies are recognized.

A fingerprint is 112 characters: the 64-bit pHash of the imagehash library as 16 hex digits, then 72 bytes in URL-safe
base64: an 8 x 8 thumbnail of luma (rows first) and 2 x 2 thumbnails of Cb and of Cr. `near_duplicates` compares them.
"""

import base64
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

LENGTH = 112  # characters of a fingerprint
LUMA, THUMBNAIL = 64, 72  # bytes of luma, and of the whole thumbnail; the rest is chroma


def fingerprint(image: Image.Image) -> str:
    """Return the fingerprint of an upright RGB image: 112 characters, see the top of this file.

    Large images are first reduced by a whole factor, to at least 128 pixels per side. This takes a tenth of the time.
    """
    factor = min(image.size) // 128
    small = image.reduce(factor) if factor > 1 else image
    cells = np.asarray(small.convert("YCbCr").resize((16, 16), Image.Resampling.BOX)).transpose(2, 0, 1)
    thumbnail = _average(cells[0], 2) + _average(cells[1], 8) + _average(cells[2], 8)
    return _phash(small).hex() + base64.urlsafe_b64encode(thumbnail).decode()


def _phash(image: Image.Image) -> bytes:
    """Return the pHash of the imagehash library, to the bit, without the coefficients that it does not use.

    A bit says whether one of the 8 x 8 lowest frequencies of the luma is above their median.

    Source: imagehash 4.3, `phash`. The transform is SciPy's there, too: another one rounds otherwise, and the
    coefficients of plain pictures are rounding errors.
    """
    from scipy.fft import dct  # every command that opens a pool imports this file, and few read images

    luma = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS))
    frequencies = dct(dct(luma, axis=0)[:8], axis=1)[:, :8].ravel()
    middle = np.partition(frequencies, (31, 32))[31:33].sum() / 2
    return np.packbits(frequencies > middle).tobytes()


def at_depth(phash: str, own: int | None, depth: int | None) -> str:
    """Convert a fingerprint from an image's own depth to the pool's depth, where its thumbnail is darker."""
    if own is None or depth is None or own == depth:
        return phash
    factor = ((1 << own) - 1) / ((1 << depth) - 1)
    thumbnail = parse([phash])[1][0].astype(np.float64)
    thumbnail[:LUMA] *= factor
    thumbnail[LUMA:] = 128 + (thumbnail[LUMA:] - 128) * factor
    return phash[:16] + base64.urlsafe_b64encode(np.floor(thumbnail + 0.5).astype(np.uint8).tobytes()).decode()


def _average(plane: npt.NDArray[np.uint8], size: int) -> bytes:
    """Return the means of cells of size x size pixels, rounded, rows first."""
    n = plane.shape[0] // size
    sums = plane.reshape(n, size, n, size).sum(axis=(1, 3), dtype=np.int64)
    means: npt.NDArray[np.int64] = (sums + size * size // 2) // (size * size)
    return means.astype(np.uint8).tobytes()


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
