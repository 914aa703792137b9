"""BatchBALD: images whose answers together would tell most about which member is right.

Given what was picked, each configuration of answers y leaves every member with a weight W[y, m] ∝ Π p_m(y_i). An image
adds to the joint entropy what its answer is uncertain by under those weights, less what every member by itself leaves
open; weights sum to 1, so nothing underflows however many are picked.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from alloop.acquisition.arrange import BLOCK_FLOATS, blocks, in_key_order
from alloop.acquisition.batch import top_k
from alloop.acquisition.greedy import lazy_greedy
from alloop.acquisition.scores import bald_of
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import Need
from alloop.predictive import entropy
from alloop.seeds import derive_seed

CONFIGURATIONS = 10_000  # all while there are at most so many; else so many samples
CONSIDERED, SHARE = 1000, 100  # at least so many images, or one in so many, those with the highest score alone
REFRESHED = 32  # images whose gain is brought up to date at a time
RELIABLE = 20
EQUAL = 1e-9  # nats

_NOTE = (
    "Beyond about {} images the joint entropy is mostly noise of {:,} samples; mutual-information with power scales."
)


@in_key_order(Need.MEMBER_LOG_PROBS)
def batchbald(candidates: Candidates, k: int, seed: int) -> Choice:
    """Greedy for the mutual information between the batch's answers and the members.

    Exact while K^picked is at most 10,000, then estimated from that many sampled configurations of answers. The
    highest 1 % by mutual information alone are considered, or 1000, or 5 k. The choice is lazy.

    Returns:
        Scores are the gain in nats, in [0, ln K].

    Raises:
        ValueError: There is a single member.

    Source: Kirsch et al. (2019), arXiv 1906.08158, algorithm 1; docs/acquisition.md section 6.
    """
    members = candidates.member_log_probs
    assert members is not None
    alone = bald_of(members)
    n_considered = max(CONSIDERED, len(alone) // SHARE, 5 * k)
    considered = np.sort(top_k(alone, candidates.keys, n_considered))
    joint = _Joint.of(members[:, torch.from_numpy(considered)].double(), derive_seed(seed, "batchbald"))

    gains = np.maximum(joint.gains(np.arange(len(considered))), 0)
    picked: list[int] = []
    scores: list[float] = []

    def update(places: npt.NDArray[np.int64], _: int) -> npt.NDArray[np.float64]:
        return np.maximum(joint.gains(places), 0)

    for best, gain in lazy_greedy(gains, k, update, equal=EQUAL, n_updated=REFRESHED):
        picked.append(best)
        scores.append(gain)
        joint = joint.with_image(best) if len(picked) < k else joint
    note = (_NOTE.format(RELIABLE, CONFIGURATIONS),) if k > RELIABLE else ()
    return Choice(considered[np.array(picked)], np.array(scores), notes=note)


def cost(size: Size) -> Cost:
    """Mutual information of all, and configurations times some images for each one picked."""
    members, considered = max(size.members, 1), max(CONSIDERED, size.candidates // SHARE, 5 * size.k)
    considered = min(considered, size.candidates)
    n_numbers = float(size.candidates * members * size.classes)
    rows = float(CONFIGURATIONS * size.classes)
    # Logarithms and divisions of every configuration take longer than products.
    operations = 500.0 * n_numbers + rows * 2 * REFRESHED * size.k * (2 * members + 400)
    n_bytes = 4.0 * n_numbers + 64.0 * size.candidates + 24.0 * considered * members * size.classes
    n_bytes += 24.0 * CONFIGURATIONS * members + 32.0 * max(BLOCK_FLOATS, rows)
    return Cost(operations, n_bytes)


@dataclasses.dataclass(frozen=True)
class _Joint:
    """What the answers to the picked images would say about the members.

    Attributes:
        probs: [M, N, K], float64.
        left_open: Mean entropy of the members [N].
        weights: [S, M]; of each member given a configuration of answers.
        shares: [S]; of each configuration.
        generator: Draws configurations once there are too many.
        sampled: The configurations are samples.
    """

    probs: Float[Tensor, "M N K"]
    left_open: Float[Tensor, "N"]
    weights: Float[Tensor, "S M"]
    shares: Float[Tensor, "S"]
    generator: np.random.Generator
    sampled: bool = False

    @staticmethod
    def of(log_probs: Float[Tensor, "M N K"], seed: int) -> "_Joint":
        even = torch.full((1, len(log_probs)), 1 / len(log_probs), dtype=torch.float64)
        left_open = entropy(log_probs).mean(dim=0)
        one = torch.ones(1, dtype=torch.float64)
        return _Joint(log_probs.exp(), left_open, even, one, np.random.default_rng(seed))

    def gains(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Mutual information that each of the images adds [B], in nats."""
        n_members, _, n_classes = self.probs.shape
        parts = []
        for start, stop in blocks(len(positions), len(self.shares) * n_classes):
            rows = torch.from_numpy(positions[start:stop])
            answers = self.weights @ self.probs[:, rows].reshape(n_members, -1)
            uncertain = torch.special.entr(answers).view(len(self.shares), -1, n_classes).sum(dim=2)
            parts.append((self.shares @ uncertain - self.left_open[rows]).numpy())
        return np.concatenate(parts)

    def with_image(self, position: int) -> "_Joint":
        """After one more pick: all configurations while they are few, else each goes on with a sampled answer."""
        answers = self.weights @ self.probs[:, position]  # [S, K], given the configuration
        n_classes = answers.shape[1]
        if not self.sampled and len(self.shares) * n_classes <= CONFIGURATIONS:
            weights = (self.weights.unsqueeze(1) * self.probs[:, position].T).flatten(0, 1)
            shares = (self.shares.unsqueeze(1) * answers).flatten()
            possible = shares > 0
            weights, shares = weights[possible], shares[possible]
            return dataclasses.replace(self, weights=weights / weights.sum(dim=1, keepdim=True), shares=shares)
        rows = torch.arange(len(self.shares))
        if not self.sampled:
            # Evenly spaced along the summed shares: each comes as often as its share says, give or take one.
            spaced = (np.arange(CONFIGURATIONS) + self.generator.random()) / CONFIGURATIONS
            summed = np.cumsum(self.shares.numpy())
            rows = torch.from_numpy(np.searchsorted(summed, spaced * summed[-1], side="right"))
            rows = rows.clamp_max(len(summed) - 1)
        drawn = torch.from_numpy(self._drawn(answers[rows]))
        weights = self.weights[rows] * self.probs[:, position, :][:, drawn].T
        shares = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return dataclasses.replace(self, weights=weights, shares=shares, sampled=True)

    def _drawn(self, chances: Float[Tensor, "R C"]) -> npt.NDArray[np.int64]:
        """One column of each row, by its chances."""
        summed = np.cumsum(chances.numpy(), axis=1)
        drawn = (summed <= self.generator.random((len(summed), 1)) * summed[:, -1:]).sum(axis=1)
        # Rounding may carry the number to the end, where chances can be 0.
        last = chances.shape[1] - 1 - (chances.flip(1) > 0).int().argmax(dim=1).numpy()
        chosen: npt.NDArray[np.int64] = np.minimum(drawn, last)
        return chosen
