"""Feature cache on disk, keyed by content hash, read by memory map.

A cache is a folder of immutable shards. A shard is a .npy file that anyone can open with `numpy.load`: one record with
the fields `sha256` (uint8 [n, 32]) and `features` [n, D]. Its name is the SHA-256 of its bytes, which makes it unique
among writers and verifies its content. All existing shards are used, so a killed run can continue, and deleting shards
is safe.
"""

import contextlib
import hashlib
import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from alloop.errors import ModelError
from alloop.files import explain_os_error, sha256_of, write_bytes, write_json

_log = logging.getLogger("alloop")

Digests = npt.NDArray[np.bytes_]  # array [n] of S32; NumPy compares all 32 bytes, in the order of the hex text

_SHARD_BYTES = 64 * 2**20  # largest size of a shard; more rows go into several shards
_ABANDONED = 24 * 3600.0  # seconds after which a temporary file is abandoned
# Shards that this process has verified, as (path, inode, size, time). Reading gigabytes once is enough, and a file that
# changed later has another stamp.
_whole: set[tuple[str, int, int, int]] = set()


class FeatureCache:
    """Cache of features, one row per image, for one way of computing them.

    Several processes can use one cache at once. Rows of other processes are looked up when a row is missing. Calls of
    one instance must not overlap.

    Args:
        root: Folder of all feature caches.
        key: Everything the features depend on: backbone, weights, preprocessing. JSON-able. Its digest names the
            folder, and the key is written there for people to read.
        n_features: Number of features D.
        dtype: Stored type of a feature, float32 or float16.

    The folder is made when the first features are added, so a cache that is only read needs no right to write.
    """

    def __init__(
        self, root: Path, key: Mapping[str, object], n_features: int, dtype: npt.DTypeLike = np.float32
    ) -> None:
        self.n_features = n_features
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._described: dict[str, Any] = {"key": dict(key), "n_features": n_features, "dtype": self.dtype.name}
        text = json.dumps(self._described, sort_keys=True, allow_nan=False)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._remove_abandoned()
        self._verified: set[str] = set()
        self._dropped: set[str] = set()
        self._shards: dict[str, Digests] = {}
        self._index: _Index | None = None

    def missing(self, sha256s: Sequence[str]) -> list[str]:
        """Return the hashes without features, each once, in the order given.

        The shards of the other hashes are verified. A damaged shard is dropped, and its rows are missing.
        """
        self._refresh()
        found = self._locate(_to_digests(sha256s))[0] >= 0
        return list(dict.fromkeys(sha256 for sha256, is_there in zip(sha256s, found, strict=True) if not is_there))

    def add(self, sha256s: Sequence[str], features: npt.NDArray[np.floating]) -> None:
        """Write features [n, D] of n images durably. Each call makes a shard, so add about a thousand rows at once.

        Raises:
            ModelError: A feature is nan or infinite (or becomes so in the stored type).
            WorkspaceError: The disk is full or the folder cannot be written; no incomplete file stays.
        """
        if features.shape != (len(sha256s), self.n_features):
            raise ValueError(
                f"features {features.shape} do not fit {len(sha256s)} images of {self.n_features} features"
            )
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(features, dtype=self.dtype)
        self._check_finite(sha256s, stored)
        digests = _to_digests(sha256s)
        n_rows = max(1, _SHARD_BYTES // (32 + self.n_features * self.dtype.itemsize))
        for start in range(0, len(digests), n_rows):
            self._write_shard(digests[start : start + n_rows], stored[start : start + n_rows])

    def take(self, sha256s: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return features [n, D] in the order given; hashes may repeat. Only the result is in memory.

        Raises:
            ModelError: Some images have no features (any more).
        """
        digests = _to_digests(sha256s)
        out = np.empty((len(digests), self.n_features), dtype=np.float32)
        for _ in range(2):  # a second time if a shard is deleted between locating and reading
            shards, rows, names = self._locate(digests)
            if (shards < 0).any():
                self._refresh()
                shards, rows, names = self._locate(digests)
            if (shards < 0).any():
                break
            if self._gather(shards, rows, names, out):
                return out
        n_missing = int((shards < 0).sum())
        raise ModelError(
            f"{n_missing} of {len(sha256s)} images have no features in {self.folder}.",
            "Run it again: what is missing from the cache is computed anew.",
        )

    def n_known_otherwise(self, sha256s: Sequence[str], *entries: str) -> int:
        """Return how many hashes have features in a cache beside this one whose key differs in these entries only."""
        if not sha256s:
            return 0
        others = [key for path in self.folder.parent.glob("*/key.json") if (key := self._key_but_for(path, entries))]
        caches = [FeatureCache(self.folder.parent, key, self.n_features, self.dtype) for key in others]
        return max((len(sha256s) - len(cache.missing(sha256s)) for cache in caches), default=0)

    def _key_but_for(self, path: Path, entries: Sequence[str]) -> Mapping[str, object] | None:
        """Return the key of another cache if it differs from this one's in these entries only."""
        try:
            described = json.loads(path.read_text("utf-8"))
            rest = {**described, "key": _without(described["key"], entries)}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):  # damaged, or of something else
            return None
        is_other = described["key"] != self._described["key"]
        is_alike = rest == {**self._described, "key": _without(self._described["key"], entries)}
        return cast("Mapping[str, object]", described["key"]) if is_other and is_alike else None

    def __len__(self) -> int:
        """Return the number of rows in all known shards, verified or not."""
        self._refresh()
        return sum(len(digests) for digests in self._shards.values())

    def _check_finite(self, sha256s: Sequence[str], features: npt.NDArray[np.floating]) -> None:
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            bad = [sha256s[row] for row in np.flatnonzero(~finite)]
            raise ModelError(
                f"The backbone gave features that are nan or infinite for {len(bad)} images, first {bad[0]}.",
                "Look at that image; if it is sound, the weights or the precision are at fault.",
            )

    def _write_shard(self, digests: Digests, features: npt.NDArray[np.floating]) -> None:
        record = np.empty(1, dtype=self._record_type(len(digests)))
        record["sha256"][0] = np.frombuffer(digests.tobytes(), dtype=np.uint8).reshape(-1, 32)
        record["features"][0] = features
        buffer = io.BytesIO()
        np.save(buffer, record, allow_pickle=False)
        data = buffer.getvalue()
        if not (self.folder / "key.json").exists():
            write_json(self.folder / "key.json", self._described)
        name = f"{hashlib.sha256(data).hexdigest()}.npy"
        write_bytes(self.folder / name, data)
        self._dropped.discard(name)
        self._verified.add(name)
        self._shards[name] = digests
        self._index = None

    def _record_type(self, n_rows: int) -> np.dtype[np.void]:
        return np.dtype([("sha256", "u1", (n_rows, 32)), ("features", self.dtype, (n_rows, self.n_features))])

    def _refresh(self) -> None:
        """Add the shards of other processes, and drop deleted ones."""
        try:
            names = {path.name for path in self.folder.glob("*.npy")} - self._dropped
        except OSError as error:
            raise explain_os_error(error, self.folder) from error
        if names == self._shards.keys():
            return
        self._index = None
        self._shards = {name: digests for name, digests in self._shards.items() if name in names}
        for name in sorted(names - self._shards.keys()):
            try:
                self._shards[name] = self._read_digests(name)
            except Exception as error:  # with a damaged header NumPy can raise anything
                self._drop(name, str(error))

    def _read_digests(self, name: str) -> Digests:
        """Return the hashes of a shard without verifying it or reading its features.

        Raises:
            ValueError: The file is not a shard of this cache.
        """
        hashes = self._open(name)["sha256"][0]
        return np.frombuffer(hashes.tobytes(), dtype="S32")

    def _open(self, name: str) -> npt.NDArray[np.void]:
        """Map a shard. Maps are not kept, because each holds an open file, and their number is limited."""
        record = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        n_rows = record.dtype["sha256"].shape[0] if record.dtype.names == ("sha256", "features") else -1
        if record.shape != (1,) or n_rows < 0 or record.dtype != self._record_type(n_rows):
            raise ValueError("it has another layout")
        return cast("npt.NDArray[np.void]", record)

    def _locate(self, digests: Digests) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[str]]:
        """Return (shard of each hash [n], or -1; row in it [n]; names of the shards). All named shards are verified."""
        while True:
            if self._index is None:
                self._index = _Index(list(self._shards.items()))
            shards, rows = self._index.find(digests)
            names = self._index.names
            touched = [names[shard] for shard in np.unique(shards[shards >= 0])]
            damaged = [name for name in touched if not self._verify(name)]
            if not damaged:
                return shards, rows, names

    def _verify(self, name: str) -> bool:
        """Return whether a shard is intact, checked once per process. A damaged shard is dropped."""
        if name in self._verified:
            return True
        try:
            is_whole, reason = self._is_whole(name), "its checksum is wrong"
        except OSError as error:
            is_whole, reason = False, str(error)
        if is_whole:
            self._verified.add(name)
        else:
            self._drop(name, reason)
        return is_whole

    def _is_whole(self, name: str) -> bool:
        path = self.folder / name
        stat = path.stat()
        stamp = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if stamp in _whole:
            return True
        is_whole = f"{sha256_of(path)}.npy" == name
        if is_whole:
            _whole.add(stamp)
        return is_whole

    def _drop(self, name: str, reason: str) -> None:
        """Stop using a shard. Delete it if it is damaged, but not if it could only not be opened."""
        _log.warning("A cache file cannot be used and will be computed anew: %s: %s", self.folder / name, reason)
        self._dropped.add(name)
        self._shards.pop(name, None)
        self._index = None
        with contextlib.suppress(OSError):  # already deleted, or in a cache that we may not write
            if not self._is_whole(name):
                (self.folder / name).unlink()

    def _gather(
        self,
        shards: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        names: list[str],
        out: npt.NDArray[np.float32],
    ) -> bool:
        """Fill `out`, one shard after another. Return False if a shard was deleted meanwhile."""
        order = np.argsort(shards, kind="stable")
        starts = np.flatnonzero(np.diff(shards[order], prepend=-1))
        for positions in np.split(order, starts[1:]) if len(order) else []:
            name = names[shards[positions[0]]]
            try:
                features = self._open(name)["features"][0]
            except OSError as error:
                self._drop(name, str(error))
                return False
            out[positions] = features[rows[positions]]
        return True

    def _remove_abandoned(self) -> None:
        for path in self.folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):  # already deleted, or not ours
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()


class _Index:
    """Index from hash to shard and row: sorted hashes, 48 bytes per row."""

    def __init__(self, shards: Sequence[tuple[str, Digests]]) -> None:
        self.names = [name for name, _ in shards]
        sizes = [len(digests) for _, digests in shards]
        digests = np.concatenate([np.empty(0, dtype="S32"), *(digests for _, digests in shards)])
        order = np.argsort(digests, kind="stable")
        self._digests = digests[order]
        self._shards = np.repeat(np.arange(len(sizes)), sizes)[order]
        self._rows = np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(size) for size in sizes)])[order]

    def find(self, digests: Digests) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return (shard, row) of each hash; shard -1 for unknown hashes."""
        if not len(self._digests):
            return np.full(len(digests), -1, dtype=np.int64), np.zeros(len(digests), dtype=np.int64)
        places = np.minimum(np.searchsorted(self._digests, digests), len(self._digests) - 1)
        is_there = self._digests[places] == digests
        return np.where(is_there, self._shards[places], -1), self._rows[places]


def _without(key: Mapping[str, object], entries: Sequence[str]) -> dict[str, object]:
    return {name: value for name, value in key.items() if name not in entries}


def _to_digests(sha256s: Sequence[str]) -> Digests:
    raw = bytes.fromhex("".join(sha256s))
    if len(raw) != 32 * len(sha256s) or any(len(sha256) != 64 for sha256 in sha256s):
        raise ValueError("a SHA-256 has 64 hex digits")
    return np.frombuffer(raw, dtype="S32")
