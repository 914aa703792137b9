"""TypiClust: the most typical image of each cluster, clusters without labels first."""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from alloop.acquisition.arrange import (
    BLOCK_FLOATS,
    blocks,
    completed,
    first_copies,
    in_key_order,
    none_labeled,
    squared_distances,
    unit_,
)
from alloop.acquisition.clusters import FITTED, KEPT, STEPS, k_means, main_directions
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import Need
from alloop.seeds import derive_seed

MOST_CLUSTERS = 500
SMALL = 5  # largest size of a cluster that comes last
NEIGHBORS = 20
COMPARED = 2048  # largest number of members among which neighbors are searched


@in_key_order(Need.FEATURES)
def typiclust(candidates: Candidates, k: int, seed: int) -> Choice:
    """Cluster labeled and unlabeled images together; choose the most typical image of each cluster in turn.

    There are min(L + k, 500) clusters, in the order of few labels, then of many members; those of at most 5 members
    come last. An image is typical if its 20 nearest neighbors in the cluster (or half of the cluster) are near. If a
    cluster has another turn, the neighbors of its picks are passed over while other images are left. Of copies only
    the one with the smallest key takes part; the others come after all clusters.

    Features are scaled to length 1. Long features are clustered along their 64 main directions.

    Returns:
        Scores are the typicality: 1 / (mean distance to the neighbors + 1e-5); 0 for an image alone in its cluster.

    Source: Hacohen, Dekel & Weinshall (2022), arXiv 2202.02794, section 3; docs/acquisition.md section 10.
    """
    assert candidates.features is not None
    z = unit_(candidates.features)
    labeled = unit_(none_labeled(candidates))
    originals = first_copies(z)
    directions = main_directions(z, seed)
    rows = torch.cat([labeled @ directions, (z @ directions)[torch.from_numpy(originals)]])
    clusters = k_means(rows, min(len(labeled) + k, MOST_CLUSTERS), seed)[1].numpy()
    queue = _in_order(clusters, originals, len(labeled))

    picked: list[int] = []
    scores: list[float] = []
    for turn in (queue[0], queue[1]):
        waiting = [_Cluster(z, labeled, cluster, derive_seed(seed, "typiclust", cluster.number)) for cluster in turn]
        while waiting and len(picked) < k:
            for cluster in waiting[: k - len(picked)]:
                position, typicality = cluster.take()
                picked.append(position)
                scores.append(typicality)
            waiting = [cluster for cluster in waiting if cluster.is_left]
    return completed(picked, scores, k, len(z))


def cost(size: Size) -> Cost:
    """Estimate the cost: main directions, k-means, and neighbors in the visited clusters."""
    n, clusters = size.candidates + size.labeled, min(size.labeled + size.k, MOST_CLUSTERS)
    kept = size.features if size.features <= 2 * KEPT else KEPT
    in_clusters = min(n * max(n / max(clusters, 1), 1), n * COMPARED)
    operations = 2.0 * n * size.features * kept + 2.0 * min(n, FITTED) * clusters * kept * (STEPS + 1)
    operations += 2.0 * n * clusters * kept + 2.0 * in_clusters * size.features * min(1, size.k / max(clusters, 1))
    n_bytes = 4.0 * n * (size.features + 3 * kept + 60) + 4.0 * min(n, FITTED) * kept + 20 * BLOCK_FLOATS
    return Cost(operations, n_bytes + 4.0 * COMPARED * size.features * 3)


@dataclasses.dataclass(frozen=True)
class _Members:
    """Members of a cluster: positions of unlabeled images in key order, and of labeled ones."""

    number: int
    unlabeled: npt.NDArray[np.int64]
    labeled: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.unlabeled) + len(self.labeled)


def _in_order(
    clusters: npt.NDArray[np.int64], originals: npt.NDArray[np.int64], n_labeled: int
) -> tuple[list[_Members], list[_Members]]:
    """Return the clusters with unlabeled images in the order of their turns: the large ones, and the small ones."""
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    found = []
    for rows in np.split(order, starts[1:]):
        is_labeled = rows < n_labeled
        if not is_labeled.all():
            members = originals[rows[~is_labeled] - n_labeled]
            found.append(_Members(int(clusters[rows[0]]), members, rows[is_labeled]))
    found.sort(key=lambda cluster: (len(cluster.labeled), -len(cluster), int(cluster.unlabeled[0])))
    return [c for c in found if len(c) > SMALL], [c for c in found if len(c) <= SMALL]


class _Cluster:
    """Cluster that returns its most typical remaining image at each turn. Neighbors are searched at its first turn."""

    def __init__(self, z: Float[Tensor, "N D"], labeled: Float[Tensor, "L D"], members: _Members, seed: int) -> None:
        self._z, self._labeled, self._members, self._seed = z, labeled, members, seed
        self._left = np.ones(len(members.unlabeled), dtype=bool)
        self._fresh = self._left.copy()
        self._typicality: npt.NDArray[np.float64] | None = None
        self._neighbors: npt.NDArray[np.int64] = np.empty((len(members.unlabeled), 0), dtype=np.int64)

    @property
    def is_left(self) -> bool:
        return bool(self._left.any())

    def take(self) -> tuple[int, float]:
        if self._typicality is None:
            self._typicality = self._look()
        among = self._left & self._fresh
        if not among.any():
            among = self._left
        best = int(np.argmax(np.where(among, self._typicality, -1)))
        self._left[best] = False
        near = self._neighbors[best]
        self._fresh[near[near < len(self._fresh)]] = False
        return int(self._members.unlabeled[best]), float(self._typicality[best])

    def _look(self) -> npt.NDArray[np.float64]:
        """Return the typicality of the unlabeled members, and store their neighbors, unlabeled ones first."""
        members, n_unlabeled = self._members, len(self._members.unlabeled)
        compared: npt.NDArray[np.int64] = np.arange(len(members))
        if len(compared) > COMPARED:
            compared = np.sort(np.random.default_rng(self._seed).permutation(len(compared))[:COMPARED])
        n_neighbors = min(NEIGHBORS, len(compared) // 2)
        if n_neighbors == 0:
            return np.zeros(n_unlabeled)
        is_unlabeled = compared < n_unlabeled
        others = torch.cat(
            [
                self._z[torch.from_numpy(members.unlabeled[compared[is_unlabeled]])],
                self._labeled[torch.from_numpy(members.labeled[compared[~is_unlabeled] - n_unlabeled])],
            ]
        )
        own = np.searchsorted(compared, np.arange(n_unlabeled))
        own[(own == len(compared)) | (compared[np.minimum(own, len(compared) - 1)] != np.arange(n_unlabeled))] = -1
        means, neighbors = [], []
        for start, stop in blocks(n_unlabeled, max(others.shape)):
            distances = squared_distances(self._z[torch.from_numpy(members.unlabeled[start:stop])], others).sqrt()
            itself = np.flatnonzero(own[start:stop] >= 0)
            distances[torch.from_numpy(itself), torch.from_numpy(own[start:stop][itself])] = torch.inf
            near = distances.topk(n_neighbors, dim=1, largest=False)
            means.append(near.values.double().mean(dim=1).numpy())
            neighbors.append(compared[near.indices.numpy()])
        self._neighbors = np.concatenate(neighbors)
        typicality: npt.NDArray[np.float64] = 1 / (np.concatenate(means) + 1e-5)
        return typicality
