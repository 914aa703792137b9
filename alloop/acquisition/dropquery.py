"""DropQuery: images whose predicted class changes when features are dropped, one from each cluster."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.acquisition.arrange import BLOCK_FLOATS, blocks, completed, in_key_order, squared_distances, unit_
from alloop.acquisition.clusters import FITTED, KEPT, STEPS, k_means, main_directions
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import Need
from alloop.seeds import derive_seed

PASSES, RATE = 3, 0.75
ENOUGH = 25  # number of changing images per requested image
MOST = 100_000  # largest number of images that are clustered


@in_key_order(Need.CALIBRATED_LOG_PROBS, Need.FEATURES, Need.HEAD)
def dropquery(candidates: Candidates, k: int, seed: int) -> Choice:
    """Predict three times with three quarters of the features set to 0; cluster the images whose class changed.

    An image qualifies if more than half of the passes disagree with its prediction; if fewer than 25 k qualify, one
    pass is enough. Each of k clusters of their normalized features gives the image nearest its center. Missing images
    are drawn at random, qualified images first.

    Returns:
        Scores are the number of passes that disagree; the highest come first.

    Source: Gupte et al. (2024), arXiv 2401.14555, algorithm 1; docs/acquisition.md section 12.
    """
    assert candidates.calibrated_log_probs is not None and candidates.features is not None
    flips = _flips(candidates, candidates.calibrated_log_probs.argmax(dim=1), seed)
    generator = np.random.default_rng(derive_seed(seed, "dropquery"))
    qualified = np.flatnonzero(flips > PASSES / 2)
    if len(qualified) < ENOUGH * k:
        qualified = np.flatnonzero(flips >= 1)
    if len(qualified) > MOST:
        qualified = np.sort(generator.permutation(qualified)[:MOST])
    picked = _one_of_each(candidates.features, qualified, k, seed)
    for others in (qualified, np.arange(len(flips))):
        missing = k - len(picked)
        picked = np.concatenate([picked, generator.permutation(others[~np.isin(others, picked)])[:missing]])
    picked = picked[np.lexsort((picked, -flips[picked]))]
    return completed(picked.tolist(), flips[picked].astype(np.float64).tolist(), k, len(flips))


def cost(size: Size) -> Cost:
    """Estimate the cost: three passes through the head with random masks, and k-means of the changing images."""
    n = min(size.candidates, MOST)
    kept = size.features if size.features <= 2 * KEPT else KEPT
    passes = PASSES * size.candidates * size.features * (20.0 + 2.0 * size.classes * max(size.members, 1))
    clustering = 2.0 * min(n, FITTED) * size.k * kept * (STEPS + 1) + 2.0 * n * (size.features * kept + size.k * kept)
    n_bytes = 4.0 * size.features * (size.candidates + n) + 4.0 * size.candidates * (size.classes + 20)
    return Cost(passes + clustering, n_bytes + 4.0 * kept * (n + 2.0 * min(n, FITTED)) + 20.0 * BLOCK_FLOATS)


def _flips(candidates: Candidates, predicted: Int[Tensor, "N"], seed: int) -> npt.NDArray[np.int64]:
    """Count the passes that give another class than the full prediction [N]."""
    features, head = candidates.features, candidates.head
    assert features is not None and head is not None
    flips = torch.zeros(len(features), dtype=torch.int64)
    for number in range(PASSES):
        generator = np.random.default_rng(derive_seed(seed, "dropout", number))
        for start, stop in blocks(*features.shape):
            kept = torch.from_numpy(generator.random((stop - start, features.shape[1]), dtype=np.float32)) >= RATE
            dropped = features[start:stop] * kept / (1 - RATE)
            flips[start:stop] += head(dropped).argmax(dim=1) != predicted[start:stop]
    return flips.numpy()


def _one_of_each(
    features: Float[Tensor, "N D"], qualified: npt.NDArray[np.int64], k: int, seed: int
) -> npt.NDArray[np.int64]:
    """Return the qualified image nearest the center of each of k clusters; fewer if clusters are empty."""
    if len(qualified) <= k:
        return qualified
    z = unit_(features[torch.from_numpy(qualified)])
    rows = z @ main_directions(z, seed)
    centers, clusters = k_means(rows, k, seed)
    distances = np.empty(len(rows))
    for start, stop in blocks(len(rows), max(len(centers), rows.shape[1])):
        squared = squared_distances(rows[start:stop], centers)
        distances[start:stop] = squared.gather(1, clusters[start:stop].unsqueeze(1)).squeeze(1).numpy()
    order = np.lexsort((qualified, distances, clusters.numpy()))
    first = np.flatnonzero(np.diff(clusters.numpy()[order], prepend=-1))
    nearest_ones: npt.NDArray[np.int64] = qualified[order[first]]
    return nearest_ones
