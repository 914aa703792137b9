"""k-means for strategies: the same clusters from the same rows in the same order, on any number of threads."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.acquisition.arrange import NO_DISTANCE, drawn, nearest, squared_distances
from alloop.seeds import derive_seed

FITTED = 20_000  # number of rows that centers are fitted to; other rows are assigned to the nearest center
STEPS = 10
KEPT, SEEN = 64, 4096  # number of directions for distances, and of rows from which they are found


def k_means(rows: Float[Tensor, "N D"], k: int, seed: int) -> tuple[Float[Tensor, "C D"], Int[Tensor, "N"]]:
    """Return centers, and the position of the nearest center of each row.

    Seeded by k-means++, then at most 10 steps of Lloyd's algorithm, both on a sample of 20,000 if there are more
    rows. There are C = min(k, N) centers; if rows are copies, some centers have no rows.

    Args:
        rows: Finite rows of about length 1; their order affects the result.
        k: Number of clusters, at least 1.
        seed: Seed of the sample and the first centers.

    Source: Lloyd (1982); Arthur & Vassilvitskii (2007).
    """
    generator = np.random.default_rng(derive_seed(seed, "k-means"))
    fitted = rows
    if len(rows) > FITTED:
        fitted = rows[torch.from_numpy(np.sort(generator.permutation(len(rows))[:FITTED]))]
    centers = _first_centers(fitted, min(k, len(fitted)), generator)
    labels = nearest(fitted, centers)[1]
    for _ in range(STEPS):
        counts = torch.bincount(labels, minlength=len(centers)).unsqueeze(1)
        sums = torch.zeros_like(centers).index_add_(0, labels, fitted)
        centers = torch.where(counts > 0, sums / counts.clamp_min(1), centers)
        before, labels = labels, nearest(fitted, centers)[1]
        if torch.equal(before, labels):
            break
    return centers, labels if fitted is rows else nearest(rows, centers)[1]


def main_directions(rows: Float[Tensor, "N D"], seed: int) -> Float[Tensor, "D Q"]:
    """Return the orthonormal directions in which rows differ most. Distances along them approximate all distances.

    Return all dimensions unchanged if there are at most twice as many as are kept.

    Source: Halko, Martinsson & Tropp (2011), algorithm 4.4.
    """
    n, n_columns = rows.shape
    if n_columns <= 2 * KEPT:
        return torch.eye(n_columns)
    generator = np.random.default_rng(derive_seed(seed, "directions"))
    sample = rows[torch.from_numpy(np.sort(generator.permutation(n)[:SEEN]))]
    sample = sample - sample.mean(dim=0)
    found = torch.from_numpy(generator.standard_normal((n_columns, KEPT), dtype=np.float32))
    for _ in range(4):
        found = torch.linalg.qr(sample.T @ (sample @ found)).Q
    return found


def _first_centers(rows: Float[Tensor, "N D"], k: int, generator: np.random.Generator) -> Float[Tensor, "k D"]:
    free = np.ones(len(rows), dtype=bool)
    distances = torch.ones(len(rows))
    chosen: list[int] = []
    for number in range(k):
        chosen.append(drawn(distances.double().numpy() * free, free, generator))
        free[chosen[-1]] = False
        to_chosen = squared_distances(rows, rows[chosen[-1:]]).squeeze(1)
        distances = to_chosen if number == 0 else torch.minimum(distances, to_chosen)
        if float(distances.max()) < NO_DISTANCE:
            distances.zero_()
    return rows[torch.tensor(chosen)]
