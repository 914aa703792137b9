"""Tools of strategies: rows in the order of their keys, features of unit length, distances in blocks.

A strategy's rule sees the candidates in the order of their keys. Sums, k-means and draws then meet the same numbers in
the same order, however the pool is stored, and the first of equal candidates has the smallest key.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from alloop.acquisition.strategy import Candidates, Choice, Positions, Strategy
from alloop.composition import Need
from alloop.predictive import check_log_probs

BLOCK_FLOATS = 4_000_000  # numbers in a block of distances or of copied rows: 16 MB
CACHED_FLOATS = 250_000  # numbers in a block that is read several times
NO_DISTANCE = 1e-6  # largest squared distance that rounding leaves between copies of unit length


def in_key_order(*needs: Need) -> Callable[[Strategy], Strategy]:
    """Make a strategy from a rule that works on candidates in the order of their keys.

    The rule gets only the parts that it needs, checked and detached; `features` and `labeled` are copies. The rule is
    not called if there is nothing to choose, and k is at most N.

    Raises (when called):
        ValueError: A part that the rule needs is missing; a number is not finite, with its position.
    """

    def strategy_of(rule: Strategy) -> Strategy:
        @functools.wraps(rule)
        def strategy(candidates: Candidates, k: int, seed: int) -> Choice:
            check(candidates, needs)
            k = min(max(k, 0), len(candidates))
            if k == 0:
                return Choice(np.empty(0, dtype=np.int64), np.empty(0))
            order: Positions = np.argsort(candidates.keys, kind="stable")
            with torch.no_grad():
                choice = rule(_arranged(candidates, order, needs), k, seed)
            return dataclasses.replace(choice, positions=order[choice.positions])

        return strategy

    return strategy_of


def check(candidates: Candidates, needs: Sequence[Need]) -> None:
    """Refuse candidates that a strategy cannot work with.

    Raises:
        ValueError: A part is missing, has another number of rows, or is not finite; names the first position.
    """
    n = len(candidates)
    rows = {
        Need.CALIBRATED_LOG_PROBS: candidates.calibrated_log_probs,
        Need.MEMBER_LOG_PROBS: candidates.member_log_probs,
        Need.FEATURES: candidates.features,
    }
    for need in needs:
        part = candidates.head if need is Need.HEAD else rows[need]
        if part is None:
            raise ValueError(f"this strategy needs {need}, and there are none")
        if isinstance(part, Tensor) and part.shape[-2] != n:
            raise ValueError(f"there are {n} candidates, and {part.shape[-2]} rows of {need}")
    if Need.CALIBRATED_LOG_PROBS in needs and candidates.calibrated_log_probs is not None:
        _check_predictions(candidates.calibrated_log_probs.unsqueeze(0))
    if Need.MEMBER_LOG_PROBS in needs and candidates.member_log_probs is not None:
        _check_predictions(candidates.member_log_probs)
    if Need.FEATURES in needs:
        _check_features(candidates.features, "the features at position")
        _check_features(candidates.labeled, "the labeled features at position")


def completed(picked: Sequence[int], scores: Sequence[float], k: int, n: int) -> Choice:
    """Complete a choice in key order: if images are missing, add those with the smallest keys, with score 0."""
    taken = np.zeros(n, dtype=bool)
    taken[list(picked)] = True
    rest = np.flatnonzero(~taken)[: k - len(picked)]
    return Choice(
        np.concatenate([np.asarray(picked, dtype=np.int64), rest]),
        np.concatenate([np.asarray(scores, dtype=np.float64), np.zeros(len(rest))]),
    )


def unit_(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Scale rows to length 1 in place; rows of zeros stay."""
    tiny = torch.finfo(rows.dtype).tiny
    for start, stop in blocks(len(rows), rows.shape[1], CACHED_FLOATS):
        block = rows[start:stop]
        lengths = block.norm(dim=1, keepdim=True)
        if not bool(((lengths > 1e-15) & (lengths < 1e18)).all()):
            # Squares of such numbers are too large or small for float32.
            block /= block.abs().amax(dim=1, keepdim=True).clamp_min(tiny)
            lengths = block.norm(dim=1, keepdim=True).clamp_min(tiny)
        block /= lengths
    return rows


def squared_lengths(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
    """Return the squared length of each row, without a copy of all rows."""
    lengths = rows.new_empty(len(rows))
    for start, stop in blocks(len(rows), rows.shape[1], CACHED_FLOATS):
        lengths[start:stop] = rows[start:stop].square().sum(dim=1)
    return lengths


def none_labeled(candidates: Candidates) -> Float[Tensor, "L D"]:
    """Return the labeled features; [0, D] without any."""
    assert candidates.features is not None
    empty = candidates.features[:0]
    return empty if candidates.labeled is None else candidates.labeled


def blocks(n_rows: int, n_columns: int, n_floats: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield start and stop of blocks of rows with about BLOCK_FLOATS (or `n_floats`) numbers each."""
    step = max(1, (n_floats or BLOCK_FLOATS) // max(n_columns, 1))
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def squared_distances(a: Float[Tensor, "A D"], b: Float[Tensor, "B D"]) -> Float[Tensor, "A B"]:
    """Return squared distances in [0, 4] between rows of length 1 (or 0). Distances within rounding errors are 0."""
    distances = torch.addmm(squared_lengths(b), a, b.T, alpha=-2).add_(squared_lengths(a).unsqueeze(1))
    return distances.masked_fill_(distances < NO_DISTANCE, 0)


def nearest(rows: Float[Tensor, "N D"], centers: Float[Tensor, "C D"]) -> tuple[Float[Tensor, "N"], Tensor]:
    """Return the squared distance to the nearest center and its position; infinity and -1 without centers."""
    distances = rows.new_full((len(rows),), torch.inf)
    which = torch.full((len(rows),), -1, dtype=torch.int64)
    if len(centers) == 0:
        return distances, which
    for start, stop in blocks(len(rows), max(len(centers), rows.shape[1])):
        found = squared_distances(rows[start:stop], centers).min(dim=1)
        distances[start:stop], which[start:stop] = found.values, found.indices
    return distances, which


def first_copies(rows: Float[Tensor, "N D"]) -> Positions:
    """Return the positions of the first row of each set of equal rows, ascending."""
    seen: set[bytes] = set()
    first = []
    for position, row in enumerate(rows.numpy()):
        digest = _digest(row)
        if digest not in seen:
            seen.add(digest)
            first.append(position)
    return np.array(first, dtype=np.int64)


def drawn(weights: npt.NDArray[np.float64], left: npt.NDArray[np.bool_], generator: np.random.Generator) -> int:
    """Draw one position by weight; if all weights are 0, draw uniformly from those left."""
    if not weights.any():
        weights = left.astype(np.float64)
    summed = np.cumsum(weights)
    chosen = np.searchsorted(summed, generator.random() * summed[-1], side="right")
    # By rounding, the number may fall on the end, where weights can be 0.
    return min(int(chosen), int(np.flatnonzero(weights)[-1]))


def _arranged(candidates: Candidates, order: Positions, needs: Sequence[Need]) -> Candidates:
    """Return the parts of the candidates that a strategy needs, in the given order.

    Labeled images have no keys. Their rows are sorted by content.
    """
    rows = torch.from_numpy(order)
    arranged = Candidates(candidates.keys[order], rule=candidates.rule)
    if Need.CALIBRATED_LOG_PROBS in needs and candidates.calibrated_log_probs is not None:
        arranged = dataclasses.replace(arranged, calibrated_log_probs=candidates.calibrated_log_probs[rows])
    if Need.MEMBER_LOG_PROBS in needs and candidates.member_log_probs is not None:
        arranged = dataclasses.replace(arranged, member_log_probs=candidates.member_log_probs[:, rows])
    if Need.HEAD in needs:
        arranged = dataclasses.replace(arranged, head=candidates.head)
    if Need.FEATURES in needs and candidates.features is not None:
        arranged = dataclasses.replace(arranged, features=candidates.features[rows].float())
        if candidates.labeled is not None and len(candidates.labeled):
            labeled = candidates.labeled
            by_content = torch.tensor(sorted(range(len(labeled)), key=lambda i: _digest(labeled[i].numpy())))
            labels = candidates.labels
            arranged = dataclasses.replace(
                arranged,
                labeled=labeled[by_content].float(),
                labels=None if labels is None else labels[by_content],
            )
    return arranged


def _digest(row: npt.NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _check_predictions(log_probs: Float[Tensor, "M N K"]) -> None:
    n_members, n, n_classes = log_probs.shape
    for start, stop in blocks(n, n_members * n_classes):
        try:
            check_log_probs(log_probs[:, start:stop])
        except ValueError:
            if start == 0:
                raise
            check_log_probs(log_probs)  # raises with the position among all rows


def _check_features(features: Tensor | None, what: str) -> None:
    if features is None:
        return
    for start, stop in blocks(*features.shape):
        block = features[start:stop]
        if bool(block.sum().isfinite()):
            continue  # faster than a check of each number; a sum that overflows is checked in detail
        bad = (~block.isfinite().all(dim=1)).nonzero().flatten()
        if len(bad):
            raise ValueError(f"{what} {start + int(bad[0])} are not finite")
