"""Lazy greedy choice, shared by strategies whose gains only shrink as images are picked."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Gains = npt.NDArray[np.floating[Any]]


def lazy_greedy(
    gains: Gains,
    k: int,
    update: Callable[[npt.NDArray[np.int64], int], Gains],
    *,
    equal: float,
    n_updated: int,
    least: float = 0.0,
    updates_picks: bool = False,
) -> Iterator[tuple[int, float]]:
    """Yield up to k places, each with the largest gain when it is picked, and that gain.

    A gain only shrinks as others are picked, so a stale gain is an upper bound. Only those that could be the largest
    are computed again, and the places are the same as by computing all of them.

    Args:
        gains: Gains [N] before the first pick, at least 0; changed in place.
        k: Largest number of picks.
        update: Computes the gains of some places as they are now. The second argument is the number of picks that all
            of their stale gains know of.
        equal: Gains that differ by less count as equal; of these the first place is picked.
        n_updated: Number of gains to compute at a time, about.
        least: Where no gain is at least this large, picking ends.
        updates_picks: `update` is called for picked places as well, and makes their gains smaller than `least`. If not,
            picked places are left out.

    Source: Minoux (1978), Accelerated Greedy Algorithms.
    """
    known = np.zeros(len(gains), dtype=np.int64)  # number of picks that each gain knows of
    n_picked = 0
    while n_picked < k:
        best = int(np.argmax(np.round(gains / equal)))
        if gains[best] < least:
            return
        if known[best] == n_picked:
            yield best, float(gains[best])
            n_picked += 1
            if not updates_picks:
                gains[best], known[best] = -1, k
            continue
        upper = np.argpartition(-gains, min(n_updated, len(gains)) - 1)[:n_updated]
        stale = np.union1d(upper[known[upper] < n_picked], [best])
        gains[stale] = update(stale, int(known[stale].min()))
        known[stale] = n_picked
