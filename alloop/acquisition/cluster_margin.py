"""Cluster-Margin: images between two classes, taken from small clusters first."""

import numpy as np
import numpy.typing as npt
import torch

from alloop.acquisition.arrange import BLOCK_FLOATS, in_key_order, squared_distances, unit_
from alloop.acquisition.batch import top_k
from alloop.acquisition.scores import margin_of
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import Need
from alloop.seeds import derive_seed

CONSIDERED, MOST = 10, 4000  # number of smallest margins per requested image, and at most
LEAST = 1.25  # smallest number of margins per requested image
IN_A_CLUSTER = 10  # mean number of images


@in_key_order(Need.CALIBRATED_LOG_PROBS, Need.FEATURES)
def cluster_margin(candidates: Candidates, k: int, seed: int) -> Choice:
    """Cluster the 10 k smallest margins; draw one image of each cluster in turn, the smallest clusters first.

    Clusters come from average linkage on normalized features, with 10 images on average. They are computed in each
    round from the small margins alone, so no distances between all images of a pool are needed, and features may
    change. Clusters of one image fill at most half of the batch while others are left, because many of them are
    outliers.

    Returns:
        Scores are -(p̄_(1) - p̄_(2)), in [-1, 0].

    Source: Citovsky et al. (2021), arXiv 2107.14263, algorithm 1; docs/acquisition.md section 13.
    """
    assert candidates.calibrated_log_probs is not None and candidates.features is not None
    margins = margin_of(candidates.calibrated_log_probs)
    considered = np.sort(top_k(margins, candidates.keys, _n_considered(len(margins), k)))
    clusters = _clusters(candidates, considered)
    generator = np.random.default_rng(derive_seed(seed, "cluster-margin"))
    # Each cluster's images in the order in which they are drawn.
    members = [generator.permutation(considered[clusters == number]) for number in range(clusters.max() + 1)]
    members.sort(key=lambda drawn: (len(drawn), int(drawn.min())))
    n_alone = sum(len(drawn) == 1 for drawn in members)
    late = slice((k + 1) // 2, max(n_alone, (k + 1) // 2))
    first, last = [*members[: late.start], *members[late.stop :]], members[late]
    picked = np.array([*_in_turn(first), *_in_turn(last)][:k], dtype=np.int64)
    return Choice(picked, margins[picked])


def cost(size: Size) -> Cost:
    """Estimate the cost: margins, and average linkage of the small ones."""
    n = _n_considered(size.candidates, size.k)
    operations = (
        size.candidates * (500.0 * size.classes + 20.0 * size.features) + 2.0 * n**2 * size.features + 100.0 * n**2
    )
    n_bytes = 4.0 * size.candidates * (size.features + size.classes + 20) + 24.0 * n**2 + 4.0 * n * size.features
    return Cost(operations, n_bytes + 20.0 * BLOCK_FLOATS)


def _n_considered(n: int, k: int) -> int:
    return min(n, max(min(CONSIDERED * k, MOST), int(np.ceil(LEAST * k))))


def _clusters(candidates: Candidates, considered: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    from sklearn.cluster import AgglomerativeClustering  # slow to import, and the other strategies do without

    n_clusters = -(-len(considered) // IN_A_CLUSTER)
    if n_clusters == 1:
        return np.zeros(len(considered), dtype=np.int64)
    assert candidates.features is not None
    z = unit_(candidates.features[torch.from_numpy(considered)])
    distances = squared_distances(z, z).sqrt_().numpy()
    linkage = AgglomerativeClustering(n_clusters=n_clusters, metric="precomputed", linkage="average")
    return np.asarray(linkage.fit_predict(distances), dtype=np.int64)


def _in_turn(members: list[npt.NDArray[np.int64]]) -> list[int]:
    """Return the first of each cluster, then the second of each, and so on."""
    longest = max((len(drawn) for drawn in members), default=0)
    return [int(drawn[turn]) for turn in range(longest) for drawn in members if turn < len(drawn)]
