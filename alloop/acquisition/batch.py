"""Batches from scores: the best, and a uniform random share.

Works on positions into the arrays it is given. The batch depends on scores, keys and the generator's seed, never on the
order of the rows.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from alloop.acquisition.strategy import Choice, Keys, Positions
from alloop.records import Reason

NOTHING = Choice(np.empty(0, dtype=np.int64), np.empty(0))


Acquire = Callable[[Positions, Positions, int], Choice]  # (rest, drawn, k): k of the rest, by their place in it


@dataclasses.dataclass(frozen=True, slots=True)
class Pick:
    """Image of a batch.

    Attributes:
        position: Row in the arrays that the batch was chosen from.
        reason: ACQUIRED (by a strategy) or RANDOM.
        rank: Place in the batch, from 1; asked in this order.
        score: Score of an acquired image.
        probability: Probability of selection. For RANDOM picks, that of being in the random share; for acquired ones,
            that of being drawn next, given the earlier draws. None if nothing was drawn.
        draw_number: Number of the draw in the batch, from 1; None if nothing was drawn.
    """

    position: int
    reason: Reason
    rank: int
    score: float | None = None
    probability: float | None = None
    draw_number: int | None = None


def compose_batch(
    keys: Keys, k: int, random_fraction: float, generator: torch.Generator, acquire: Acquire
) -> tuple[tuple[Pick, ...], tuple[str, ...]]:
    """Choose k images: a uniform random share, and a strategy's choice of the rest.

    The random share is drawn first and from all candidates. It is a simple random sample of them, so each candidate has
    the inclusion probability that `draw_uniform` returns, whatever the strategy chooses. Its size is k *
    random_fraction, rounded half up. Random picks take random ranks, so that a half-answered batch holds both kinds.

    Args:
        keys: Distinct keys [N] of the images that may be asked about, one per group of near copies.
        k: At least 0; fewer are returned if there are fewer candidates.
        random_fraction: Random share of the batch, in [0, 1].
        generator: Source of the randomness of the share.
        acquire: Strategy; called only if it has something to choose.

    Returns:
        Picks by rank, and the strategy's notes.

    Source: docs/acquisition.md sections 0 and 15.
    """
    n_random = math.floor(k * random_fraction + 0.5)
    drawn, probability = draw_uniform(np.argsort(keys, kind="stable"), n_random, generator)
    rest = np.setdiff1d(np.arange(len(keys)), drawn)
    wanted = min(k - len(drawn), len(rest))
    choice = acquire(rest, drawn, wanted) if wanted > 0 else NOTHING
    picks = [Pick(at, Reason.RANDOM, 0, None, probability, m) for m, at in enumerate(drawn.tolist(), start=1)]
    for place, (at, score) in enumerate(zip(rest[choice.positions].tolist(), choice.scores.tolist(), strict=True)):
        if choice.probabilities is None:
            picks.append(Pick(at, Reason.ACQUIRED, 0, score))
        else:
            chance = float(choice.probabilities[place])
            picks.append(Pick(at, Reason.ACQUIRED, 0, score, chance, len(drawn) + place + 1))
    return _ranked(picks, len(drawn), generator), choice.notes


def top_k(scores: npt.NDArray[np.floating], keys: Keys, k: int) -> Positions:
    """Return the positions of the k highest scores, best first, ordered by (-score, key).

    Args:
        scores: Scores [N], finite.
        keys: Keys [N], distinct.
        k: Fewer are returned if there are fewer images.

    Raises:
        ValueError: A score is not finite; names the first position.
    """
    check_scores(scores, keys)
    order: Positions = np.lexsort((keys, -scores))
    return order[: max(k, 0)]


def draw_uniform(candidates: Positions, k: int, generator: torch.Generator) -> tuple[Positions, float]:
    """Draw k of the candidates without replacement, each set of k equally likely.

    Args:
        candidates: Distinct positions, one per group.
        k: All of them are drawn if there are fewer.
        generator: Source of the randomness.

    Returns:
        The drawn positions in the order drawn, and the probability k / n with which each candidate was among them:
        uniform over the n candidates, given that these are the candidates.
    """
    n = len(candidates)
    k = min(max(k, 0), n)
    chosen = torch.randperm(n, generator=generator)[:k].numpy()
    return candidates[chosen].astype(np.int64), (k / n if n else 0.0)


def check_scores(scores: npt.NDArray[np.floating], keys: Keys) -> None:
    """Refuse scores that cannot be ranked.

    Raises:
        ValueError: There is not one key for each score, or a score is not finite; names the first position.
    """
    if len(keys) != len(scores):
        raise ValueError("scores and keys must have one row per image")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(f"the score at position {bad[0]}{more} is not finite")


def _ranked(picks: Sequence[Pick], n_drawn: int, generator: torch.Generator) -> tuple[Pick, ...]:
    """Return the picks with ranks from 1. Drawn picks (the first ones) get random ranks; each kind keeps its order."""
    n = len(picks)
    at_random = set(torch.randperm(n, generator=generator)[:n_drawn].tolist())
    drawn, acquired = iter(picks[:n_drawn]), iter(picks[n_drawn:])
    ordered = (next(drawn) if place in at_random else next(acquired) for place in range(n))
    return tuple(dataclasses.replace(pick, rank=rank) for rank, pick in enumerate(ordered, start=1))
