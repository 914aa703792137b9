"""Near-duplicate images: a perceptual fingerprint, and an index of the leaders of groups.

A fingerprint is 112 characters: the 64-bit pHash of the imagehash library as 16 hex digits, then 72 bytes in URL-safe
base64: an 8 x 8 thumbnail of luma (rows first) and 2 x 2 thumbnails of Cb and of Cr. The pHash finds candidates fast.
The thumbnail confirms them, because pHash alone groups different digits, and different plain pictures
(measured in benchmarks/near_duplicates).
"""

import base64
import functools
import itertools
from array import array

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

LENGTH = 112  # characters of a fingerprint
_N_BITS = 64
_LUMA = 64  # bytes of the luma thumbnail; the rest is chroma
_THUMBNAIL = 72
_POPCOUNT = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)

# Limits of the confirmation, in 8-bit levels unless noted; measured in benchmarks/near_duplicates.
_NOISE_VARIANCE = 4.0  # variance of a thumbnail cell below which structure is noise
_MAX_MISFIT = 0.006  # 1 - correlation of the luma thumbnails
_MAX_GAIN = 1.5  # ratio of the luma thumbnails' contrasts
_MAX_SHIFT = 40.0  # difference of mean luma: a mild change of brightness
_MIN_SHIFT = 4.0  # difference allowed for plain images, which have no structure
_MAX_CHROMA = 10.0  # difference of any chroma cell


def fingerprint(image: Image.Image) -> str:
    """Return the fingerprint of an upright RGB image: 112 characters, see the top of this file.

    Large images are first reduced by a whole factor, to at least 128 pixels per side. This takes a tenth of the time.
    """
    factor = min(image.size) // 128
    small = image.reduce(factor) if factor > 1 else image
    phash = np.packbits(imagehash.phash(small).hash.flatten()).tobytes()
    cells = np.asarray(small.convert("YCbCr").resize((16, 16), Image.Resampling.BOX), dtype=np.float64)
    luma = _average(cells[:, :, 0], 2)
    chroma = [_average(cells[:, :, channel], 8) for channel in (1, 2)]
    thumbnail = np.concatenate([luma.ravel(), *(plane.ravel() for plane in chroma)])
    return phash.hex() + base64.urlsafe_b64encode(np.floor(thumbnail + 0.5).astype(np.uint8).tobytes()).decode()


def at_depth(phash: str, own: int | None, depth: int | None) -> str:
    """Convert a fingerprint from an image's own depth to the pool's depth, where its thumbnail is darker."""
    if own is None or depth is None or own == depth:
        return phash
    factor = ((1 << own) - 1) / ((1 << depth) - 1)
    thumbnail = _parse(phash)[1].astype(np.float64)
    thumbnail[:_LUMA] *= factor
    thumbnail[_LUMA:] = 128 + (thumbnail[_LUMA:] - 128) * factor
    return phash[:16] + base64.urlsafe_b64encode(np.floor(thumbnail + 0.5).astype(np.uint8).tobytes()).decode()


def _average(plane: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    n = plane.shape[0] // size
    averaged: npt.NDArray[np.float64] = plane.reshape(n, size, n, size).mean(axis=(1, 3))
    return averaged


class NearDuplicateIndex:
    """Index of the leaders of near-duplicate groups, much faster than comparing with each.

    Leader clustering: an image joins the nearest leader within `distance` bits that the thumbnail confirms, or leads a
    new group. Images are not compared with other members, so groups do not form chains between quite different images.
    Only the order of arrival decides which image leads.

    The search is multi-index hashing (Norouzi, Punjani & Fleet, CVPR 2012): 64 bits are cut into m bands; two hashes
    within d bits agree within floor(d / m) bits in at least one band, so only these buckets are searched.

    Args:
        distance: Number of bits of the 64-bit pHash that may differ, in [0, 16].
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        n_bands = min(distance + 1, 4)  # buckets of narrower bands would grow with the pool
        self._radius = distance // n_bands
        self._edges = [_N_BITS * band // n_bands for band in range(n_bands + 1)]
        self._buckets: list[dict[int, array[int]]] = [{} for _ in range(n_bands)]
        self._n = 0
        self._ids: npt.NDArray[np.int64] = np.empty(16, dtype=np.int64)
        self._hashes: npt.NDArray[np.uint64] = np.empty(16, dtype=np.uint64)
        self._thumbnails: npt.NDArray[np.uint8] = np.empty((16, _THUMBNAIL), dtype=np.uint8)

    def __len__(self) -> int:
        return self._n

    def add_leader(self, image_id: int, phash: str) -> None:
        """Make an image the leader of a group."""
        value, thumbnail = _parse(phash)
        if self._n == len(self._ids):
            self._grow()
        self._ids[self._n], self._hashes[self._n], self._thumbnails[self._n] = image_id, value, thumbnail
        for buckets, (key, _) in zip(self._buckets, self._keys(value), strict=True):
            buckets.setdefault(key, array("I")).append(self._n)
        self._n += 1

    def find(self, phash: str) -> tuple[int, int] | None:
        """Find the nearest leader: its image id and its distance in bits; None if no leader is near.

        Of several at the same distance, the smallest image id is returned.
        """
        value, thumbnail = _parse(phash)
        positions = self._candidates(value)
        bits = _n_different(self._hashes[positions], value)
        near = bits <= self.distance
        positions, bits = positions[near], bits[near]
        confirmed = _confirm(self._thumbnails[positions], thumbnail)
        found = [(int(b), int(i)) for b, i in zip(bits[confirmed], self._ids[positions[confirmed]], strict=True)]
        if not found:
            return None
        distance, image_id = min(found)
        return image_id, distance

    def assign(self, image_id: int, phash: str) -> tuple[int, int]:
        """Assign an image to the nearest group or a new one. Return (leader's image id, distance in bits)."""
        found = self.find(phash)
        if found is None:
            self.add_leader(image_id, phash)
            return image_id, 0
        return found

    def _candidates(self, value: int) -> npt.NDArray[np.int64]:
        hits: list[npt.NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        for buckets, (key, width) in zip(self._buckets, self._keys(value), strict=True):
            for flip in _flips(width, self._radius):
                bucket = buckets.get(key ^ flip)
                if bucket is not None:
                    hits.append(np.array(bucket, dtype=np.int64))
        return np.unique(np.concatenate(hits))

    def _keys(self, value: int) -> list[tuple[int, int]]:
        """Return (bits as a number, width) of every band."""
        edges = itertools.pairwise(self._edges)
        return [((value >> low) & ((1 << (high - low)) - 1), high - low) for low, high in edges]

    def _grow(self) -> None:
        self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._thumbnails = np.concatenate([self._thumbnails, np.empty_like(self._thumbnails)])


def bits_apart(one: str, other: str) -> int:
    """Count the bits in which the pHashes of two fingerprints differ."""
    return (int(one[:16], 16) ^ int(other[:16], 16)).bit_count()


def _parse(phash: str) -> tuple[int, npt.NDArray[np.uint8]]:
    if len(phash) != LENGTH:
        raise ValueError(f"a fingerprint has {LENGTH} characters, this one {len(phash)}")
    return int(phash[:16], 16), np.frombuffer(base64.urlsafe_b64decode(phash[16:]), dtype=np.uint8)


@functools.cache
def _flips(width: int, radius: int) -> tuple[int, ...]:
    """Return all numbers of `width` bits with at most `radius` bits set."""
    chosen = (bits for n in range(radius + 1) for bits in itertools.combinations(range(width), n))
    return tuple(sum(1 << bit for bit in bits) for bits in chosen)


def _n_different(hashes: npt.NDArray[np.uint64], value: int) -> npt.NDArray[np.int64]:
    different = hashes ^ np.uint64(value)
    counts: npt.NDArray[np.int64] = _POPCOUNT[different.view(np.uint8)].reshape(-1, 8).sum(axis=1, dtype=np.int64)
    return counts


def _confirm(thumbnails: npt.NDArray[np.uint8], thumbnail: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which thumbnails [n, 72] show the same picture, up to mild changes of brightness and contrast."""
    them, it = thumbnails.astype(np.float64), thumbnail.astype(np.float64)
    luma, its_luma = them[:, :_LUMA], it[:_LUMA]
    shift = np.abs(luma.mean(axis=1) - its_luma.mean())
    centered, its_centered = luma - luma.mean(axis=1, keepdims=True), its_luma - its_luma.mean()
    # Noise is added to both variances, so that plain images agree and faint structure counts little.
    variance = (centered**2).mean(axis=1) + _NOISE_VARIANCE
    its_variance = (its_centered**2).mean() + _NOISE_VARIANCE
    covariance = (centered * its_centered).mean(axis=1) + _NOISE_VARIANCE
    misfit = 1 - covariance / np.sqrt(variance * its_variance)
    gain = np.sqrt(np.maximum(variance, its_variance) / np.minimum(variance, its_variance))
    detail = np.sqrt(np.maximum(np.minimum(variance, its_variance) - _NOISE_VARIANCE, 0))
    may_shift = np.clip(2 * detail, _MIN_SHIFT, _MAX_SHIFT)
    chroma = np.abs(them[:, _LUMA:] - it[_LUMA:]).max(axis=1)
    same: npt.NDArray[np.bool_] = (
        (misfit <= _MAX_MISFIT) & (gain <= _MAX_GAIN) & (shift <= may_shift) & (chroma <= _MAX_CHROMA)
    )
    return same
