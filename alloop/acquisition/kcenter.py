"""CoreSet by greedy k-center: each step takes the image farthest from all labeled and chosen ones."""

import math

import numpy as np
import numpy.typing as npt
import torch

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
from alloop.acquisition.greedy import lazy_greedy
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import Need

REFRESHED = 48  # number of images whose distance is updated at a time


@in_key_order(Need.FEATURES)
def k_center(candidates: Candidates, k: int, seed: int) -> Choice:
    """Choose the farthest first, in the space of normalized features; without labels begin nearest to the mean.

    Copies of labeled or chosen images come last, by key. Nothing is drawn, and the model does not count. The largest
    distance from any image to the chosen set is at most twice the optimum.

    Returns:
        Scores are the distance in [0, 2] to the nearest labeled or chosen image at the time of the pick. Without
        labels, the first has the score of the second.

    Source: Sener & Savarese (2018), arXiv 1708.00489, algorithm 1; docs/acquisition.md section 8.
    """
    assert candidates.features is not None
    z = unit_(candidates.features)
    labeled = unit_(none_labeled(candidates))
    picked: list[int] = []
    scores: list[float] = []
    if len(labeled) == 0:
        picked.append(int(np.argmin(nearest(z, z.mean(dim=0, keepdim=True))[0].numpy())))
        labeled = z[picked]
    distances = nearest(z, labeled)[0].numpy()
    if picked:
        scores.append(math.sqrt(float(distances.max())))
    n_first = len(picked)

    def update(places: npt.NDArray[np.int64], since: int) -> npt.NDArray[np.float32]:
        missed = torch.tensor(picked[n_first + since :])
        stale = torch.from_numpy(distances[places])
        found = squared_distances(z[torch.from_numpy(places)], z[missed]).amin(dim=1)
        nearer: npt.NDArray[np.float32] = torch.minimum(stale, found).numpy()
        return nearer

    farthest = lazy_greedy(
        distances,
        k - n_first,
        update,
        equal=NO_DISTANCE,
        n_updated=REFRESHED,
        least=NO_DISTANCE,
        updates_picks=True,
    )
    for place, squared in farthest:
        picked.append(place)
        scores.append(math.sqrt(squared))
    return completed(picked, scores, k, len(z))


def cost(size: Size) -> Cost:
    """Estimate the cost: distances to the labeled images, and to each choice from a part of the candidates."""
    rows, columns = size.candidates, size.features
    return Cost(rows * columns * (size.labeled + 20 + size.k), 4.0 * rows * (columns + 8) + 12 * BLOCK_FLOATS)
