"""Members pooled one after the other: memory does not grow with their number.

The pooled prediction is the mean of probabilities. A member that diverged fails the ensemble; it is not averaged in.
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.predictive import entropy

_TOLERANCE = 1e-2  # of a row's sum of probabilities, nats; bfloat16 rounds to 4e-3


class MemberPool:
    """Running log Σ_m p_m and Σ_m H(p_m), in float64 on the CPU: O(N K), whatever M is.

    Members arrive as log-probabilities [N, K] of the same images in the same order.
    """

    def __init__(self) -> None:
        self._log_sum: Tensor | None = None
        self._entropies: Tensor | None = None
        self.n_members = 0

    def add(self, log_probs: Float[Tensor, "N K"]) -> None:
        """Take in one more member.

        Raises:
            ValueError: A row is nan or infinite, or no distribution (logits were passed), or the shape is another than
                before; names member and row.
        """
        wide = log_probs.detach().cpu().double()
        self._check(wide)
        entropies = entropy(wide)
        if self._log_sum is None or self._entropies is None:
            self._log_sum, self._entropies = wide.clone(), entropies
        else:
            self._log_sum = torch.logaddexp(self._log_sum, wide)
            self._entropies = self._entropies + entropies
        self.n_members += 1

    def mean_log_probs(self) -> Float[Tensor, "N K"]:
        """Log p̄, float64. Raises ValueError before the first member."""
        return self._sums()[0] - math.log(self.n_members)

    def expected_entropy(self) -> Float[Tensor, "N"]:
        """Mean entropy of the members, nats, float64."""
        return self._sums()[1] / self.n_members

    def mutual_information(self) -> Float[Tensor, "N"]:
        """H(p̄) - mean H(p_m), nats, at least 0: exact to 1e-15 or so, since both are float64.

        Raises:
            ValueError: A single member cannot disagree with itself.
        """
        if self.n_members < 2:
            raise ValueError(f"mutual information needs at least 2 members, got {self.n_members}")
        return (entropy(self.mean_log_probs()) - self.expected_entropy()).clamp_min(0)

    def _sums(self) -> tuple[Tensor, Tensor]:
        if self._log_sum is None or self._entropies is None:
            raise ValueError("an ensemble of no members predicts nothing")
        return self._log_sum, self._entropies

    def _check(self, log_probs: Tensor) -> None:
        if self._log_sum is not None and log_probs.shape != self._log_sum.shape:
            raise ValueError(
                f"member {self.n_members} predicts {list(log_probs.shape)}, the others {list(self._log_sum.shape)}"
            )
        # Not finite, or not summing to 1: nan compares as false.
        bad = ~(log_probs.logsumexp(dim=-1).abs() < _TOLERANCE)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            why = (
                "sums to another probability than 1" if bool(torch.isfinite(log_probs[row]).all()) else "is not finite"
            )
            raise ValueError(f"row {row} of member {self.n_members} {why}; {int(bad.sum())} such rows")


def pool_members(members: Iterable[Float[Tensor, "N K"]]) -> Float[Tensor, "N K"]:
    """Log p̄ of members that are made one at a time, float64 on the CPU. See `MemberPool`."""
    pool = MemberPool()
    for log_probs in members:
        pool.add(log_probs)
    return pool.mean_log_probs()
