"""Index of the leaders of near-duplicate groups.

The pHash of a fingerprint finds candidates fast. The thumbnail confirms them, because pHash alone groups different
digits, and different plain pictures (measured in benchmarks/near_duplicates).
"""

import functools
import itertools
from array import array
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from alloop.pool.hashing import LUMA, THUMBNAIL, parse

_N_BITS = 64
_BLOCK = 256  # images that are searched for at once: each is also compared with the ones before it in the block
_MOST_PAIRS = 1 << 18  # pairs of images that are compared at once, to bound the memory
# Masks that count bits in parallel (Warren, Hacker's Delight, section 5-1); numpy 1 has no such function.
_TWOS, _FOURS, _EIGHTS, _ONES = (np.uint64(0x0101010101010101 * byte) for byte in (0x55, 0x33, 0x0F, 0x01))

# Limits of the confirmation, in 8-bit levels unless noted; measured in benchmarks/near_duplicates.
_NOISE_VARIANCE = 4.0  # variance of a thumbnail cell below which structure is noise
_MAX_MISFIT = 0.006  # 1 - correlation of the luma thumbnails
_MAX_GAIN = 1.5  # ratio of the luma thumbnails' contrasts
_MAX_SHIFT = 40.0  # difference of mean luma: a mild change of brightness
_MIN_SHIFT = 4.0  # difference allowed for plain images, which have no structure
_MAX_CHROMA = 10.0  # difference of any chroma cell

Hashes = npt.NDArray[np.uint64]
Thumbnails = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]
Joined = tuple[int, int]  # image id of a leader, and the distance to it in bits
Near = dict[int, list[tuple[int, int]]]  # position of an image → (distance in bits, a near image) of each


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
        edges = [_N_BITS * band // n_bands for band in range(n_bands + 1)]
        self._bands = [(low, high - low) for low, high in itertools.pairwise(edges)]
        self._flips = [_flips(width, distance // n_bands) for _, width in self._bands]
        self._buckets: list[dict[int, array[int]]] = [{} for _ in self._bands]
        self._n = 0
        self._ids: Positions = np.empty(16, dtype=np.int64)
        self._hashes: Hashes = np.empty(16, dtype=np.uint64)
        self._thumbnails: Thumbnails = np.empty((16, THUMBNAIL), dtype=np.uint8)

    def __len__(self) -> int:
        return self._n

    def add_leaders(self, phashes: Mapping[int, str]) -> None:
        """Make images the leaders of groups: image id → fingerprint.

        Raises:
            ValueError: A text is not a fingerprint.
        """
        self._add(np.array([*phashes], dtype=np.int64), *parse([*phashes.values()]))

    def group(self, phashes: Mapping[int, str]) -> dict[int, Joined]:
        """Put images, one after the other, each in the group of the nearest leader, or in a new one.

        Of several leaders at the same distance, the one with the smallest image id is chosen.

        Args:
            phashes: Image id → fingerprint, in the order of arrival.

        Returns:
            Image id → (leader's image id, distance in bits); (its own id, 0) if it leads a new group.

        Raises:
            ValueError: A text is not a fingerprint.
        """
        ids, (hashes, thumbnails) = np.array([*phashes], dtype=np.int64), parse([*phashes.values()])
        blocks = [slice(start, start + _BLOCK) for start in range(0, len(ids), _BLOCK)]
        found = [self._group_block(ids[block], hashes[block], thumbnails[block]) for block in blocks]
        return dict(zip(phashes, itertools.chain.from_iterable(found), strict=True))

    def _group_block(self, ids: Positions, hashes: Hashes, thumbnails: Thumbnails) -> list[Joined]:
        near = self._find(hashes, thumbnails)
        earlier = _compare_block(hashes, thumbnails, self.distance)
        joined: list[Joined] = []
        listed: list[int] = ids.tolist()
        for n, image_id in enumerate(listed):
            # An image of the block is a leader if it joined no other.
            leaders = [(bits, listed[m]) for bits, m in earlier.get(n, ()) if joined[m][0] == listed[m]]
            bits, leader = min([*near.get(n, ()), *leaders], default=(0, image_id))
            joined.append((leader, bits))
        leads = np.array([leader for leader, _ in joined], dtype=np.int64) == ids
        self._add(ids[leads], hashes[leads], thumbnails[leads])
        return joined

    def _find(self, hashes: Hashes, thumbnails: Thumbnails) -> Near:
        """Return the ids of the near leaders of the images that have some."""
        near: Near = {}
        for asked, leaders in self._candidates(hashes):
            bits = _n_different(hashes[asked], self._hashes[leaders])
            close = bits <= self.distance
            asked, leaders, bits = asked[close], leaders[close], bits[close]
            confirmed = _confirm(self._thumbnails[leaders], thumbnails[asked])
            rows = (asked[confirmed].tolist(), bits[confirmed].tolist(), self._ids[leaders[confirmed]].tolist())
            for n, distance, leader in zip(*rows, strict=True):
                near.setdefault(n, []).append((distance, leader))
        return near

    def _candidates(self, hashes: Hashes) -> Iterator[tuple[Positions, Positions]]:
        """Yield pairs of images and leaders that may be near each other, in parts; a pair may come twice."""
        leaders, counts, first = array("I"), [], 0
        for n, keys in enumerate(zip(*self._keys(hashes), strict=True), start=1):
            before = len(leaders)
            for buckets, flips, key in zip(self._buckets, self._flips, keys, strict=True):
                for flip in flips:
                    if (bucket := buckets.get(key ^ flip)) is not None:
                        leaders.extend(bucket)
            counts.append(len(leaders) - before)
            if leaders and (n == len(hashes) or len(leaders) > _MOST_PAIRS):
                yield np.repeat(np.arange(first, n), counts), np.array(leaders, dtype=np.int64)
                leaders, counts, first = array("I"), [], n

    def _add(self, ids: Positions, hashes: Hashes, thumbnails: Thumbnails) -> None:
        start, self._n = self._n, self._n + len(ids)
        while self._n > len(self._ids):
            self._grow()
        self._ids[start : self._n], self._hashes[start : self._n] = ids, hashes
        self._thumbnails[start : self._n] = thumbnails
        for buckets, keys in zip(self._buckets, self._keys(hashes), strict=True):
            for position, key in enumerate(keys, start):
                if (bucket := buckets.get(key)) is None:
                    buckets[key] = array("I", (position,))
                else:
                    bucket.append(position)

    def _keys(self, hashes: Hashes) -> list[list[int]]:
        """Return the bits of every band as numbers, a list of one number per image for each band."""
        return [((hashes >> np.uint64(low)) & np.uint64((1 << width) - 1)).tolist() for low, width in self._bands]

    def _grow(self) -> None:
        self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._thumbnails = np.concatenate([self._thumbnails, np.empty_like(self._thumbnails)])


def _compare_block(hashes: Hashes, thumbnails: Thumbnails, distance: int) -> Near:
    """Return the positions of the near images before each image that has some."""
    bits = _n_different(hashes[:, None], hashes[None, :])
    later, earlier = np.nonzero(np.tril(bits <= distance, k=-1))
    same = _confirm(thumbnails[earlier], thumbnails[later])
    later, earlier = later[same], earlier[same]
    near: Near = {}
    for n, m, apart in zip(later.tolist(), earlier.tolist(), bits[later, earlier].tolist(), strict=True):
        near.setdefault(n, []).append((apart, m))
    return near


@functools.cache
def _flips(width: int, radius: int) -> tuple[int, ...]:
    """Return all numbers of `width` bits with at most `radius` bits set."""
    chosen = (bits for n in range(radius + 1) for bits in itertools.combinations(range(width), n))
    return tuple(sum(1 << bit for bit in bits) for bits in chosen)


def _n_different(hashes: Hashes, others: Hashes) -> Positions:
    """Count the bits in which hashes differ."""
    x = hashes ^ others
    x = x - ((x >> np.uint64(1)) & _TWOS)
    x = (x & _FOURS) + ((x >> np.uint64(2)) & _FOURS)
    x = (x + (x >> np.uint64(4))) & _EIGHTS
    return ((x * _ONES) >> np.uint64(56)).astype(np.int64)


def _confirm(thumbnails: Thumbnails, others: Thumbnails) -> npt.NDArray[np.bool_]:
    """Return which pairs of thumbnails [n, 72] show the same picture, up to mild changes of brightness and contrast."""
    parts = range(0, len(thumbnails), _MOST_PAIRS >> 4)
    confirmed = [
        _confirm_part(thumbnails[n : n + (_MOST_PAIRS >> 4)], others[n : n + (_MOST_PAIRS >> 4)]) for n in parts
    ]
    return np.concatenate([np.empty(0, dtype=np.bool_), *confirmed])


def _confirm_part(thumbnails: Thumbnails, others: Thumbnails) -> npt.NDArray[np.bool_]:
    one, other = thumbnails.astype(np.float64), others.astype(np.float64)
    means = [them[:, :LUMA].mean(axis=1, keepdims=True) for them in (one, other)]
    centered = [them[:, :LUMA] - mean for them, mean in zip((one, other), means, strict=True)]
    # Noise is added to both variances, so that plain images agree and faint structure counts little.
    variance, its_variance = ((them**2).mean(axis=1) + _NOISE_VARIANCE for them in centered)
    covariance = (centered[0] * centered[1]).mean(axis=1) + _NOISE_VARIANCE
    misfit = 1 - covariance / np.sqrt(variance * its_variance)
    gain = np.sqrt(np.maximum(variance, its_variance) / np.minimum(variance, its_variance))
    detail = np.sqrt(np.maximum(np.minimum(variance, its_variance) - _NOISE_VARIANCE, 0))
    shift, may_shift = np.abs(means[0] - means[1])[:, 0], np.clip(2 * detail, _MIN_SHIFT, _MAX_SHIFT)
    chroma = np.abs(one[:, LUMA:] - other[:, LUMA:]).max(axis=1)
    same: npt.NDArray[np.bool_] = (
        (misfit <= _MAX_MISFIT) & (gain <= _MAX_GAIN) & (shift <= may_shift) & (chroma <= _MAX_CHROMA)
    )
    return same
