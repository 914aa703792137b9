"""Pooling of members one after another, so that memory does not grow with their number.

The pooled prediction is the mean of probabilities. A member that diverged makes the ensemble fail.
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

_TOLERANCE = 1e-2  # tolerance of the log of a row's sum, in nats; bfloat16 rounds to 4e-3


class MemberPool:
    """Running log Σ_m p_m in float64 on the CPU. Memory is O(N K) for every M.

    Members arrive as log-probabilities [N, K] of the same images in the same order, or [N, 2, K] by two kinds of heads.
    """

    def __init__(self) -> None:
        self._log_sum: Tensor | None = None
        self.n_members = 0

    def add(self, log_probs: Float[Tensor, "N K"]) -> None:
        """Add a member.

        Raises:
            ValueError: A row is not finite or is not a distribution (logits were passed), or the shape differs from
                earlier members; names member and row.
        """
        wide = log_probs.detach().cpu().double()
        self._check(wide)
        self._log_sum = wide.clone() if self._log_sum is None else torch.logaddexp(self._log_sum, wide)
        self.n_members += 1

    def mean_log_probs(self) -> Float[Tensor, "N K"]:
        """Return log p̄ in float64. Raises ValueError before the first member."""
        if self._log_sum is None:
            raise ValueError("an ensemble of no members predicts nothing")
        return self._log_sum - math.log(self.n_members)

    def _check(self, log_probs: Tensor) -> None:
        if self._log_sum is not None and log_probs.shape != self._log_sum.shape:
            raise ValueError(
                f"member {self.n_members} predicts {list(log_probs.shape)}, the others {list(self._log_sum.shape)}"
            )
        # Rows that are not finite or do not sum to 1; comparisons with nan are false.
        bad = ~(log_probs.logsumexp(dim=-1).abs() < _TOLERANCE)
        bad = bad.flatten(1).any(dim=1) if bad.ndim > 1 else bad
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            why = (
                "sums to another probability than 1" if bool(torch.isfinite(log_probs[row]).all()) else "is not finite"
            )
            raise ValueError(f"row {row} of member {self.n_members} {why}; {int(bad.sum())} such rows")


def pool_members(members: Iterable[Float[Tensor, "N K"]]) -> Float[Tensor, "N K"]:
    """Return log p̄ of members that are computed one at a time, float64 on the CPU. See `MemberPool`."""
    pool = MemberPool()
    for log_probs in members:
        pool.add(log_probs)
    return pool.mean_log_probs()
