"""CoreSet by greedy k-center: each next image is the one farthest from everything labeled or chosen so far."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.acquisition.arrange import (
    BLOCK_FLOATS,
    NO_DISTANCE,
    completed,
    in_key_order,
    nearest,
    none_labeled,
    squared_distances,
    unit_,
)
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import Need

REFRESHED = 48  # images whose distance is brought up to date at a time


@in_key_order(Need.FEATURES)
def k_center(candidates: Candidates, k: int, seed: int) -> Choice:
    """Farthest first in the space of normalized features; without labels the first is the one nearest the mean.

    Copies of what is labeled or chosen come last, by key. Nothing is drawn, and the model does not count. At most
    twice as far from its nearest choice as in the best choice is the worst covered image.

    Returns:
        Scores are the distance [0, 2] to the nearest labeled or chosen image when it was picked; the first without
        labels has the distance of the second.

    Source: Sener & Savarese (2018), arXiv 1708.00489, algorithm 1; docs/acquisition.md section 8.
    """
    assert candidates.features is not None
    z = unit_(candidates.features)
    labeled = unit_(none_labeled(candidates))
    distances = nearest(z, labeled)[0]
    picked: list[int] = []
    scores: list[float] = []
    if len(labeled) == 0:
        first = int(np.argmin(nearest(z, z.mean(dim=0, keepdim=True))[0].numpy()))
        picked.append(first)
        distances = nearest(z, z[first : first + 1])[0]
        scores.append(math.sqrt(float(distances.max())))
    seen = torch.full((len(z),), len(picked))
    while len(picked) < k:
        farthest, squared = _farthest(z, picked, distances, seen)
        if squared == 0:
            break
        picked.append(farthest)
        scores.append(math.sqrt(squared))
    return completed(picked, scores, k, len(z))


def cost(size: Size) -> Cost:
    """Distances to the labeled images, and to each choice from a part of the candidates."""
    rows, columns = size.candidates, size.features
    return Cost(rows * columns * (size.labeled + 20 + size.k), 4.0 * rows * (columns + 8) + 12 * BLOCK_FLOATS)


def _farthest(
    z: Float[Tensor, "N D"], picked: list[int], distances: Float[Tensor, "N"], seen: Int[Tensor, "N"]
) -> tuple[int, float]:
    """The candidate farthest from all picks, and how far.

    Distances only shrink, so an old one is an upper bound, and only those that could be the largest are brought up to
    date: `distances` and `seen` (how many picks each knows of) change in place.
    """
    while True:
        farthest = int(np.argmax(np.round(distances.numpy() / NO_DISTANCE)))  # equal but for rounding: by key
        if seen[farthest] == len(picked):
            return farthest, float(distances[farthest])
        n = min(REFRESHED, len(z))
        upper = np.argpartition(-distances.numpy(), n - 1)[:n]
        stale = torch.from_numpy(np.union1d(upper[seen.numpy()[upper] < len(picked)], [farthest]))
        missed = torch.tensor(picked[int(seen[stale].min()) :])
        distances[stale] = torch.minimum(distances[stale], squared_distances(z[stale], z[missed]).amin(dim=1))
        seen[stale] = len(picked)
