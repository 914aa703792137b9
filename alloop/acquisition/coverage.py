"""Coverage of the pool: each step takes the image that adds most to the coverage of all images.

An image s covers a target x by k(x, s) in [0, 1], and a set covers it by its best image. ProbCover counts the targets
within a radius, MaxHerding sums a smooth kernel, UHerding weights it by uncertainty.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from alloop.acquisition.arrange import (
    BLOCK_FLOATS,
    NO_DISTANCE,
    blocks,
    completed,
    in_key_order,
    none_labeled,
    squared_distances,
    unit_,
)
from alloop.acquisition.clusters import FITTED, KEPT, STEPS, k_means, main_directions
from alloop.acquisition.greedy import lazy_greedy
from alloop.acquisition.scores import margin_of
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import Need
from alloop.seeds import derive_seed

TARGETS, SOURCES = 5_000, 20_000  # largest numbers of images that are covered, and that may be chosen
KEPT_FLOATS = 25_000_000  # largest number of kernel values that are kept instead of computed again: 100 MB
REFRESHED = 32  # number of images whose gain is updated at a time
PURITY, PROBES = 0.95, 500
WITHOUT_LABELS = 10  # number of clusters while fewer than two classes are known

Kernel = Callable[[Float[Tensor, "A B"]], Float[Tensor, "A B"]]


def gaussian(sigma: float) -> Kernel:
    """Return the kernel exp(-d² / sigma²) of squared distances. There is no 2 in it."""
    return lambda squared: squared.mul(-1 / sigma**2).exp_()


def ball(radius: float) -> Kernel:
    """Return the kernel that is 1 within the radius, else 0."""
    return lambda squared: (squared < radius**2).float()


@in_key_order(Need.FEATURES)
def max_herding(candidates: Candidates, k: int, seed: int) -> Choice:
    """Choose greedily for the mean over the pool of max_s exp(-d(x, s)²), on normalized features.

    Returns:
        Scores are the gain in mean coverage, in [0, 1].

    Source: Bae et al. (2024), arXiv 2407.12212, algorithm 1, with sigma = 1; docs/acquisition.md section 11.
    """
    return herd(candidates, k, seed, gaussian(1.0))


@in_key_order(Need.CALIBRATED_LOG_PROBS, Need.FEATURES)
def uherding(candidates: Candidates, k: int, seed: int) -> Choice:
    """Choose greedily for the mean over the pool of u_x max_s exp(-d² / sigma²), with u = 1 - (p̄_(1) - p̄_(2)).

    sigma is the smallest distance between two labeled images that are not copies; 1 without such images. Therefore
    coverage decides with few labels, and the margin with many. If nothing is left to gain, the smallest margin comes
    first.

    Returns:
        Scores are the gain in mean weighted coverage, in [0, 1].

    Source: Bae et al. (2025), arXiv 2412.20644, algorithm 1; docs/acquisition.md section 11.
    """
    assert candidates.calibrated_log_probs is not None
    uncertainty = 1 + margin_of(candidates.calibrated_log_probs)
    labeled = unit_(none_labeled(candidates).clone())
    sigma, note = _smallest_distance(labeled)
    choice = herd(candidates, k, seed, gaussian(sigma), uncertainty)
    return dataclasses.replace(choice, notes=(note, *choice.notes))


@in_key_order(Need.FEATURES)
def probcover(candidates: Candidates, k: int, seed: int) -> Choice:
    """Choose greedily for the number of images in balls around labeled and chosen ones, on normalized features.

    The radius is the largest at which 95 % of the balls hold a single cluster, with as many clusters as there are
    labeled classes; 10 while there are fewer than two. If all images are covered, the smallest keys follow.

    Returns:
        Scores are the share of the pool that was newly covered.

    Source: Yehuda et al. (2022), arXiv 2205.11320, algorithm 1; docs/acquisition.md section 11.
    """
    assert candidates.features is not None
    known = 0 if candidates.labels is None else len(np.unique(candidates.labels[candidates.labels >= 0].numpy()))
    n_clusters = known if known > 1 else WITHOUT_LABELS
    radius = pure_radius(unit_(candidates.features), n_clusters, seed)
    choice = herd(candidates, k, seed, ball(radius))
    note = f"The radius is {radius:.3f}, at which {PURITY:.0%} of the balls hold only one of {n_clusters} clusters."
    return dataclasses.replace(choice, notes=(note, *choice.notes))


def herd(
    candidates: Candidates,
    k: int,
    seed: int,
    kernel: Kernel,
    weights: npt.NDArray[np.float64] | None = None,
    factors: npt.NDArray[np.float64] | None = None,
    labeled_share: float = 1.0,
    n_targets: int = TARGETS,
    n_sources: int = SOURCES,
) -> Choice:
    """Maximize mean_x w_x max_s k(x, s) over labeled and chosen images s greedily.

    The choice is lazy. Gains that differ by less than a millionth of the first one are equal, and go by key. Above
    5,000 images a sample of them is covered; above 20,000 a sample covers, half of it the images of the largest weight.

    Args:
        candidates: Candidates in key order; features are normalized in place.
        k: Number of images to choose, at most N.
        seed: Seed of the samples.
        kernel: Kernel of squared distances.
        weights: Weights w [N], not negative; None: all 1. If nothing is left to gain, the largest come first.
        factors: Factors of the gains [N], not negative; None: all 1.
        labeled_share: Factor in [0, 1] of the kernel of labeled images.
        n_targets: Largest number of images that are covered.
        n_sources: Largest number of images that may be chosen; at least 2 k.
    """
    assert candidates.features is not None
    z, labeled = unit_(candidates.features), unit_(none_labeled(candidates))
    n = len(z)
    generator = np.random.default_rng(derive_seed(seed, "coverage"))
    targets = np.sort(generator.permutation(n)[:n_targets])
    sources = _sources(n, max(n_sources, 2 * k), weights, generator)
    w = np.ones(n) if weights is None else weights
    covering = torch.from_numpy(w[targets] / len(targets)).float()
    pool = _Pool(z[torch.from_numpy(targets)], covering, z, sources, kernel)
    pool.cover(labeled, labeled_share)
    f = np.ones(len(sources)) if factors is None else factors[sources]

    gains = f * pool.gains(np.arange(len(sources)))
    step = max(float(gains.max()), 0.0) * 1e-6
    picked: list[int] = []
    scores: list[float] = []

    def update(places: npt.NDArray[np.int64], _: int) -> npt.NDArray[np.float64]:
        return f[places] * pool.gains(places)

    n_wanted = k if step > 0 else 0
    for best, gain in lazy_greedy(gains, n_wanted, update, equal=step, n_updated=REFRESHED, least=step):
        picked.append(int(sources[best]))
        scores.append(gain)
        pool.cover(z[picked[-1:]])
    return _rest(picked, scores, k, w)


def pure_radius(z: Float[Tensor, "N D"], n_clusters: int, seed: int) -> float:
    """Return the largest radius at which 95 % of the balls around images hold images of a single k-means cluster.

    A ball is pure up to the nearest image of another cluster, so the result is a quantile of these distances over 500
    images. With one cluster it is 2, which covers everything.
    """
    directions = main_directions(z, seed)
    clusters = k_means(z @ directions, n_clusters, seed)[1]
    generator = np.random.default_rng(derive_seed(seed, "radius"))
    probes = torch.from_numpy(np.sort(generator.permutation(len(z))[:PROBES]))
    others = torch.from_numpy(np.sort(generator.permutation(len(z))[:SOURCES]))
    nearest_other = torch.full((len(probes),), 4.0)
    for start, stop in blocks(len(others), max(len(probes), z.shape[1])):
        part = others[start:stop]
        squared = squared_distances(z[probes], z[part])
        squared[clusters[probes].unsqueeze(1) == clusters[part]] = 4.0
        nearest_other = torch.minimum(nearest_other, squared.amin(dim=1))
    ordered = nearest_other.sort().values.sqrt()
    # Slightly less, so that rounding cannot add the nearest image of another cluster.
    return float(ordered[int((1 - PURITY) * len(ordered))]) * (1 - 1e-6)


def herding_cost(size: Size) -> Cost:
    """Estimate the cost: a kernel between sources and targets, one with labeled images, and some rows per pick."""
    return cost_of_herding(size, TARGETS, SOURCES)


def cost_of_herding(size: Size, most_targets: int, most_sources: int) -> Cost:
    """Estimate the cost for samples of these sizes. If the kernel is kept, its rows cost little."""
    n_targets = min(size.candidates, most_targets)
    n_sources = min(size.candidates, max(most_sources, 2 * size.k))
    is_kept = n_targets * n_sources <= KEPT_FLOATS
    rows, again = n_sources + size.labeled + size.k, 3.0 * REFRESHED * size.k
    per_row = 0.6 * n_targets * (size.features + 30)  # large products are fast
    operations = rows * per_row + again * (20.0 * n_targets if is_kept else per_row)
    n_bytes = 4.0 * size.features * (size.candidates + size.labeled + n_targets) + 100.0 * size.candidates
    return Cost(operations, n_bytes + 32.0 * BLOCK_FLOATS + (4.0 * n_targets * n_sources if is_kept else 0.0))


def uherding_cost(size: Size) -> Cost:
    """Estimate the cost: herding, and the distances between labeled images."""
    herding = herding_cost(size)
    return Cost(
        herding.operations + 0.6 * size.labeled**2 * size.features,
        herding.n_bytes + 4.0 * (size.candidates * size.classes + size.labeled * size.features),
    )


def probcover_cost(size: Size) -> Cost:
    """Estimate the cost: herding, k-means and the radius."""
    herding = herding_cost(size)
    n, kept = size.candidates, size.features if size.features <= 2 * KEPT else KEPT
    operations = 0.6 * n * size.features * (kept + PROBES) + 2.0 * min(n, FITTED) * size.classes * kept * (STEPS + 2)
    extra = 4.0 * kept * (n + min(n, FITTED)) + 4.0 * size.features * PROBES
    return Cost(herding.operations + operations, herding.n_bytes + extra)


class _Pool:
    """Targets with their coverage, and the sources that may cover them."""

    def __init__(
        self,
        targets: Float[Tensor, "T D"],
        weights: Float[Tensor, "T"],
        z: Float[Tensor, "N D"],
        sources: npt.NDArray[np.int64],
        kernel: Kernel,
    ) -> None:
        self._targets, self._weights, self._kernel = targets, weights, kernel
        self._z, self._sources = z, torch.from_numpy(sources)
        self._covered = torch.zeros(len(targets))
        self._rows: Tensor | None = None
        if len(targets) * len(sources) <= KEPT_FLOATS:
            self._rows = targets.new_empty(len(sources), len(targets))
            for start, stop in blocks(len(sources), max(targets.shape)):
                self._rows[start:stop] = self._between(z[self._sources[start:stop]])

    def cover(self, rows: Float[Tensor, "B D"], share: float = 1.0) -> None:
        for start, stop in blocks(len(rows), max(self._targets.shape)):
            best = share * self._between(rows[start:stop]).amax(dim=0)
            self._covered = torch.maximum(self._covered, best)

    def gains(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the gains of sources, by their places among the sources."""
        parts = []
        for start, stop in blocks(len(places), max(self._targets.shape)):
            chosen = torch.from_numpy(places[start:stop])
            kept = self._rows
            rows = self._between(self._z[self._sources[chosen]]) if kept is None else kept[chosen]
            more = rows.sub_(self._covered).clamp_min_(0)
            parts.append((more @ self._weights).double().numpy())
        return np.concatenate(parts)

    def _between(self, rows: Float[Tensor, "B D"]) -> Float[Tensor, "B T"]:
        return self._kernel(squared_distances(rows, self._targets))


def _sources(
    n: int, size: int, weights: npt.NDArray[np.float64] | None, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    if n <= size:
        return np.arange(n)
    drawn = generator.permutation(n)
    if weights is None:
        return np.sort(drawn[:size])
    heaviest = np.argsort(-weights, kind="stable")[: size // 2]
    return np.sort(np.concatenate([heaviest, drawn[~np.isin(drawn, heaviest)][: size - len(heaviest)]]))


def _rest(picked: list[int], scores: list[float], k: int, weights: npt.NDArray[np.float64]) -> Choice:
    """Complete the choice with the largest weights, then by key, which is the order of the rows."""
    missing = k - len(picked)
    if missing == 0:
        return completed(picked, scores, k, len(weights))
    order = np.argsort(-weights, kind="stable")
    more = order[~np.isin(order, picked)][:missing]
    choice = completed([*picked, *more.tolist()], [*scores, *[0.0] * missing], k, len(weights))
    what = "by key" if np.ptp(weights) == 0 else "by uncertainty"
    return dataclasses.replace(
        choice, notes=(f"{len(picked)} images cover the whole pool; the rest is chosen {what}.",)
    )


def _smallest_distance(labeled: Float[Tensor, "L D"]) -> tuple[float, str]:
    smallest = torch.inf
    for start, stop in blocks(len(labeled), max(labeled.shape)):
        squared = squared_distances(labeled[start:stop], labeled)
        apart = squared[squared > NO_DISTANCE]
        smallest = min(smallest, float(apart.min()) if len(apart) else torch.inf)
    if smallest == torch.inf:
        return 1.0, "The kernel is 1 wide: there are no two different labeled images whose distance could be used."
    sigma = float(np.sqrt(smallest))
    return sigma, f"The kernel is {sigma:.3f} wide, the smallest distance between two labeled images."
