"""From scores to a batch: the best, a uniform random share, one image per group of near-duplicates.

Works on positions into the arrays it is given. What comes out depends on scores, tie keys, groups and the generator's
seed, never on the order of the rows.
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch

from alloop.records import Reason

Positions = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True, slots=True)
class Pick:
    """One image of a batch.

    Attributes:
        position: Row in the arrays that the batch was chosen from.
        reason: ACQUIRED (by score) or RANDOM.
        rank: Place in the batch, from 1; asked in this order.
        probability: For RANDOM picks the probability with which this image was in the random share; None for others.
    """

    position: int
    reason: Reason
    rank: int
    probability: float | None = None


def compose_batch(
    scores: npt.NDArray[np.floating],
    keys: Keys,
    groups: Positions,
    k: int,
    random_fraction: float,
    generator: torch.Generator,
) -> tuple[Pick, ...]:
    """Choose k images: a uniformly random share, and the highest scores of the rest.

    The random share is drawn first and from all candidates, whatever their score: it is a simple random sample of the
    pool's groups as they were at this draw, so each has the inclusion probability that `draw_uniform` gives, and what
    was acquired does not bend it. Its size is k * random_fraction, rounded half up. Random picks take random ranks, so
    that a batch which is only half answered has lost neither kind.

    Args:
        scores: [N], finite; higher is asked sooner. Only images that may be asked.
        keys: [N], distinct; ties go to the smaller (`seeds.tie_keys`).
        groups: [N]; images of equal number are near copies, and at most one of them is picked.
        k: At least 0; fewer are returned if there are fewer groups.
        random_fraction: In [0, 1].
        generator: Where the randomness comes from.

    Raises:
        ValueError: A score is not finite; names the first position.

    Source: acquisition.md sections 0 and 15.
    """
    _check(scores, keys, groups)
    n_random = math.floor(k * random_fraction + 0.5)
    candidates = _representatives(np.zeros(len(scores)), keys, groups)
    drawn, probability = draw_uniform(candidates, n_random, generator, keys)
    rest = np.flatnonzero(~np.isin(groups, groups[drawn]))
    acquired = rest[top_k(scores[rest], keys[rest], k - len(drawn), groups[rest])]

    n = len(drawn) + len(acquired)
    at_random = set(torch.randperm(n, generator=generator)[: len(drawn)].tolist())
    drawn_next, acquired_next = iter(drawn.tolist()), iter(acquired.tolist())
    return tuple(
        Pick(next(drawn_next), Reason.RANDOM, place + 1, probability)
        if place in at_random
        else Pick(next(acquired_next), Reason.ACQUIRED, place + 1)
        for place in range(n)
    )


def top_k(scores: npt.NDArray[np.floating], keys: Keys, k: int, groups: Positions | None = None) -> Positions:
    """Positions of the k highest scores, best first, ordered by (-score, key); at most one of each group.

    Args:
        scores: [N], finite.
        keys: [N], distinct.
        k: Fewer are returned if there are fewer images (or groups).
        groups: [N]; a group is represented by its first member in that order. None: every image is its own group.

    Raises:
        ValueError: A score is not finite; names the first position.
    """
    _check(scores, keys, groups)
    if groups is None:
        order: Positions = np.lexsort((keys, -scores))
        return order[: max(k, 0)]
    return _representatives(scores, keys, groups)[: max(k, 0)]


def draw_uniform(
    candidates: Positions, k: int, generator: torch.Generator, keys: Keys | None = None
) -> tuple[Positions, float]:
    """Draw k of the candidates without replacement, each set of k equally likely.

    Args:
        candidates: Distinct positions, one per group.
        k: All of them are drawn if there are fewer.
        generator: Where the randomness comes from.
        keys: Of all positions; with them the draw does not depend on the order of the candidates.

    Returns:
        The drawn positions in the order drawn, and the probability k / n with which each candidate was among them:
        uniform over the n candidates, given that these are the candidates.
    """
    n = len(candidates)
    ordered = candidates if keys is None else candidates[np.argsort(keys[candidates], kind="stable")]
    k = min(max(k, 0), n)
    chosen = torch.randperm(n, generator=generator)[:k].numpy()
    return ordered[chosen].astype(np.int64), (k / n if n else 0.0)


def _representatives(scores: npt.NDArray[np.floating], keys: Keys, groups: Positions) -> Positions:
    """The first member of each group by (-score, key), in that order."""
    order: Positions = np.lexsort((keys, -scores))
    _, first = np.unique(groups[order], return_index=True)
    return order[np.sort(first)]


def _check(scores: npt.NDArray[np.floating], keys: Keys, groups: Positions | None) -> None:
    if len(keys) != len(scores) or (groups is not None and len(groups) != len(scores)):
        raise ValueError("scores, keys and groups must have one row per image")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(f"the score at position {bad[0]}{more} is not finite")
