"""Features on disk by the fingerprint of their trunk, or of trunks side by side. Only the latter need torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from alloop.pool.cache import FeatureCache

AT_ONCE = 8192  # images whose features are joined at a time


class CachedFeatures(Protocol):
    """Features on disk, by `ImageRef.key`."""

    def missing(self, keys: Sequence[str], /) -> list[str]:
        """Return the keys without features, each once."""
        ...

    def take(self, keys: Sequence[str], /) -> npt.NDArray[np.float32]:
        """Return features [n, D] in the order given; keys may repeat."""
        ...


def open_features(cache: Path, fingerprint: Mapping[str, Any]) -> CachedFeatures:
    """Open the features that the cache has. The fingerprint is that of a `Backbone`."""
    if "side_by_side" not in fingerprint:
        return open_alone(cache, fingerprint)
    return Joined([open_alone(cache, part) for part in fingerprint["side_by_side"]])


def open_alone(cache: Path, fingerprint: Mapping[str, Any]) -> FeatureCache:
    """Open the cache of one trunk."""
    return FeatureCache(cache / "features", fingerprint, int(fingerprint["n_features"]))


class Joined:
    """Features of trunks side by side, joined when they are read."""

    def __init__(self, blocks: Sequence[FeatureCache]) -> None:
        self._blocks = blocks

    def missing(self, keys: Sequence[str], /) -> list[str]:
        lacking = {key for block in self._blocks for key in block.missing(keys)}
        return list(dict.fromkeys(key for key in keys if key in lacking))

    def take(self, keys: Sequence[str], /) -> npt.NDArray[np.float32]:
        import torch

        from alloop.models.side_by_side import join_blocks

        rows = np.empty((len(keys), sum(block.n_features for block in self._blocks)), dtype=np.float32)
        for start in range(0, len(keys), AT_ONCE):  # so that only the result is in memory
            part = keys[start : start + AT_ONCE]
            blocks = [torch.from_numpy(block.take(part)) for block in self._blocks]
            rows[start : start + AT_ONCE] = join_blocks(blocks).numpy()
        return rows
