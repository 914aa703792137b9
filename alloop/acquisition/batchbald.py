"""BatchBALD: batches whose answers together are most informative about the members.

Each configuration y of answers to the picked images gives every member the weight W[y, m] ∝ Π p_m(y_i). The gain of an
image is the entropy of its answer under these weights, minus the mean entropy of the members. Weights sum to 1, so
nothing underflows.
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

CONFIGURATIONS = 10_000  # number up to which all configurations are used, and number of samples beyond
CONSIDERED, SHARE = 1000, 100  # number of images considered: at least 1000 or one in 100, those with the highest scores
REFRESHED = 32  # number of images whose gain is updated at a time
RELIABLE = 20
EQUAL = 1e-9  # nats

_NOTE = (
    "Beyond about {} images the joint entropy is mostly noise of {:,} samples. For large batches use "
    "mutual-information with [acquisition] perturb = power."
)


@in_key_order(Need.MEMBER_LOG_PROBS)
def batchbald(candidates: Candidates, k: int, seed: int) -> Choice:
    """Choose greedily for the mutual information between the batch's answers and the members.

    Exact while K^picked is at most 10,000, then estimated from that many sampled configurations of answers. The
    highest 1 % by mutual information alone are considered, or 1000, or 5 k. The choice is lazy.

    Returns:
        Scores are the gain in nats, in [0, ln K].

    Raises:
        ValueError: There is only one member.

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
    """Estimate the cost: mutual information of all images, and all configurations for some images per pick."""
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
    """Joint distribution of members and answers to the picked images.

    Attributes:
        probs: Probabilities [M, N, K], float64.
        left_open: Mean entropy of the members [N].
        weights: Weight of each member, given a configuration of answers [S, M].
        shares: Probability of each configuration [S].
        generator: Generator of samples, once there are too many configurations.
        sampled: True if the configurations are samples.
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
        """Return the mutual information that each image adds [B], in nats."""
        n_members, _, n_classes = self.probs.shape
        parts = []
        for start, stop in blocks(len(positions), len(self.shares) * n_classes):
            rows = torch.from_numpy(positions[start:stop])
            answers = self.weights @ self.probs[:, rows].reshape(n_members, -1)
            uncertain = torch.special.entr(answers).view(len(self.shares), -1, n_classes).sum(dim=2)
            parts.append((self.shares @ uncertain - self.left_open[rows]).numpy())
        return np.concatenate(parts)

    def with_image(self, position: int) -> "_Joint":
        """Return the joint after one more pick: all configurations while they are few, else samples."""
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
            # Evenly spaced along the summed shares, so each count is within one of its expected value.
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
        """Draw one column of each row by its probabilities."""
        summed = np.cumsum(chances.numpy(), axis=1)
        drawn = (summed <= self.generator.random((len(summed), 1)) * summed[:, -1:]).sum(axis=1)
        # By rounding, the number may fall on the end, where probabilities can be 0.
        last = chances.shape[1] - 1 - (chances.flip(1) > 0).int().argmax(dim=1).numpy()
        chosen: npt.NDArray[np.int64] = np.minimum(drawn, last)
        return chosen
