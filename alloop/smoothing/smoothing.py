"""Features of an image, averaged over similar images of the pool. No label is used.

The pool teaches three things: the axes along which its images differ, a metric that ignores the differences between
nearest neighbors, and a graph of similar images. Heads on the smoothed features need fewer labels
(benchmarks/pool_features).
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import final

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.progress import Progress, silent
from alloop.seeds import derive_seed, tie_keys
from alloop.smoothing.neighbors import BLOCK, blocks, nearest, power, principal_axes, squared_gaps, unit

VERSION = 1  # of the arithmetic
MOST_NODES = 50_000  # images in the graph
FEWEST = 30  # images in the graph

AXES = 400  # largest number A of principal axes
LOCAL = 5  # neighbors that the metric is learned from
NEIGHBORS = 10  # neighbors in the graph
SHRINKAGE = 0.3  # of the scatter between neighbors, in the metric
STEPS = {0.8: 20, 0.95: 60}  # α → steps of diffusion; α = 0 needs none
PARTS = 1 + len(STEPS)
SMALLEST = 1e-12  # product of two bandwidths: those of copies are 0

_Say = Callable[[int], None]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Links:
    """Links that join images outside the graph to it. Finding them takes most of the time of placing an image.

    Attributes:
        nodes: Positions of the ten nearest nodes [B, 10].
        weights: Their weights [B, 10], of sum 1.
    """

    nodes: Int[Tensor, "B 10"]
    weights: Float[Tensor, "B 10"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Smoothing:
    """Fitted graph of N images (nodes), which gives smoothed features to any image. All tensors are on the CPU.

    Attributes:
        keys: Content keys of the nodes [N], 64 hex digits each, ascending.
        mean: Mean of the nodes' raw features [D], float64.
        axes: The A strongest principal axes [D, A], orthonormal columns.
        least: Distance from the mean, along the axes, below which an image has no direction [], float64.
        metric: Symmetric map [A, A] from a direction to the space of the graph.
        spread: Symmetric map [A, A] from a direction to the features that are averaged.
        places: Nodes in the space of the graph [N, A], of length 1 (0 for a node at the mean).
        widths: Distance from each node to its tenth neighbor [N].
        rows: Smoothed features of the nodes [N, 3A]: the parts for α = 0, 0.8 and 0.95, each centered and of mean
            squared norm 1/3.
        centers: Means [3A] that were subtracted from the parts.
        scales: Norms [3] that the parts were divided by.
    """

    keys: tuple[str, ...]
    mean: Float[Tensor, "D"]
    axes: Float[Tensor, "D A"]
    least: Float[Tensor, ""]
    metric: Float[Tensor, "A A"]
    spread: Float[Tensor, "A A"]
    places: Float[Tensor, "N A"]
    widths: Float[Tensor, "N"]
    rows: Float[Tensor, "N 3A"]
    centers: Float[Tensor, "3A"]
    scales: Float[Tensor, "3"]

    @property
    def n_features(self) -> int:
        """Number of smoothed features, 3A."""
        return self.rows.shape[1]

    def positions(self, keys: Sequence[str]) -> Int[Tensor, "B"]:
        """Return the position of each key among the nodes, -1 for other images."""
        found = self._position_of
        return torch.tensor([found.get(key, -1) for key in keys], dtype=torch.int64)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of everything that links depend on, in hex."""
        found = hashlib.sha256()
        for tensor in (self.mean, self.axes, self.least, self.metric, self.places, self.widths):
            found.update(tensor.numpy().tobytes())
        return found.hexdigest()

    def transform(
        self, keys: Sequence[str], features: Float[Tensor, "B D"], links: Links | None = None
    ) -> Float[Tensor, "B 3A"]:
        """Return smoothed features: a node's own row of the graph, and `place` for all other images.

        Args:
            keys: Content keys of the images.
            features: Their raw features. Those of nodes are not read.
            links: Links of the images that are not nodes, in their order; None: they are found now.

        Raises:
            ValueError: Numbers of rows or features do not fit, or features of an image that is not a node are not
                finite.
        """
        self._check(features)
        if len(keys) != len(features):
            raise ValueError(f"there are {len(keys)} keys, and features of {len(features)} images")
        positions = self.positions(keys)
        smoothed = self.rows[positions.clamp_min(0)]
        others = (positions < 0).nonzero().flatten()
        for start, stop in blocks(len(others)):
            part = others[start:stop]
            known = None if links is None else Links(links.nodes[start:stop], links.weights[start:stop])
            smoothed[part] = self._place_block(features[part], part, known)
        return smoothed

    def place(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B 3A"]:
        """Return smoothed features of images outside the graph, from their ten nearest nodes.

        Each row depends on this image only. Memory besides the result is 256 x N numbers.

        Raises:
            ValueError: The number of features does not fit, or features are not finite; names the first position.
        """
        self._check(features)
        placed = torch.empty(len(features), self.n_features)
        for start, stop in blocks(len(features)):
            placed[start:stop] = self._place_block(features[start:stop], torch.arange(start, stop))
        return placed

    def link(self, features: Float[Tensor, "B D"]) -> Links:
        """Return the links of images outside the graph. Memory besides the result is 256 x N numbers.

        Raises:
            ValueError: As for `place`.
        """
        self._check(features)
        links = Links(torch.empty(len(features), NEIGHBORS, dtype=torch.int64), torch.empty(len(features), NEIGHBORS))
        for start, stop in blocks(len(features)):
            found = self._link_block(self._whole_block(features[start:stop], torch.arange(start, stop)))
            links.nodes[start:stop], links.weights[start:stop] = (
                found.nodes[: stop - start],
                found.weights[: stop - start],
            )
        return links

    def to_tensors(self) -> dict[str, Tensor]:
        """Return everything as named tensors; keys as bytes [N, 32]."""
        raw = np.frombuffer(bytes.fromhex("".join(self.keys)), dtype=np.uint8)
        return {"keys": torch.from_numpy(raw.reshape(-1, 32).copy())} | {name: getattr(self, name) for name in _SHAPES}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Smoothing":
        """Return what `to_tensors` wrote.

        Raises:
            ValueError: A tensor is missing, has another shape or type, or is not finite, or keys are not ascending;
                says which.
        """
        if missing := [name for name in ("keys", *_SHAPES) if name not in tensors]:
            raise ValueError(f"there is no tensor {', '.join(missing)}")
        axes, packed = tensors["axes"], tensors["keys"]
        if axes.ndim != 2 or packed.ndim != 2 or packed.shape[1] != 32 or packed.dtype != torch.uint8:
            raise ValueError("axes must be [D, A], and keys must be bytes [N, 32]")
        sizes = {"D": axes.shape[0], "A": axes.shape[1], "N": len(packed), "3A": PARTS * axes.shape[1], "3": PARTS}
        for name, (shape, dtype) in _SHAPES.items():
            tensor, wanted = tensors[name], [sizes[size] for size in shape]
            if list(tensor.shape) != wanted or tensor.dtype != dtype:
                raise ValueError(f"{name} is {list(tensor.shape)} {tensor.dtype}, not {wanted} {dtype}")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} is not finite")
        text = packed.contiguous().numpy().tobytes().hex()
        keys = tuple(text[start : start + 64] for start in range(0, len(text), 64))
        if len(keys) < FEWEST or any(one >= other for one, other in itertools.pairwise(keys)):
            raise ValueError(f"keys must be ascending, and at least {FEWEST}")
        return cls(keys, **{name: tensors[name] for name in _SHAPES})

    @functools.cached_property
    def _position_of(self) -> dict[str, int]:
        return {key: position for position, key in enumerate(self.keys)}

    def _check(self, features: Float[Tensor, "B D"]) -> None:
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"need features [B, {len(self.mean)}], got {list(features.shape)}")

    def _whole_block(self, features: Float[Tensor, "B D"], positions: Int[Tensor, "B"]) -> Float[Tensor, "256 A"]:
        """Return the directions of at most BLOCK images.

        The block is filled up with zeros: products of another shape could round otherwise, and the result of an image
        would depend on the images beside it.
        """
        _check_finite(features, positions)
        return _directions(_filled(features), self.mean, self.axes, float(self.least))

    def _link_block(self, directions: Float[Tensor, "256 A"]) -> Links:
        places = unit(directions @ self.metric)
        found = nearest(places, self.places, NEIGHBORS)
        squared = squared_gaps(places, self.places, found)
        width = squared.amax(dim=1, keepdim=True).sqrt()
        return Links(found, (-squared / (width * self.widths[found]).clamp_min(SMALLEST)).softmax(dim=1))

    def _place_block(
        self, features: Float[Tensor, "B D"], positions: Int[Tensor, "B"], links: Links | None = None
    ) -> Float[Tensor, "B 3A"]:
        """Place at most BLOCK images."""
        directions = self._whole_block(features, positions)
        own = unit(directions @ self.spread)
        links = self._link_block(directions) if links is None else Links(_filled(links.nodes), _filled(links.weights))
        n_axes, parts = self.axes.shape[1], []
        for part, alpha in enumerate((0.0, *STEPS)):
            columns = slice(part * n_axes, (part + 1) * n_axes)
            mixed = (own - self.centers[columns]) / (self.scales[part] * PARTS**0.5)
            if alpha:
                # The rows are centered and scaled already, and the weights sum to 1.
                averaged = torch.einsum("bj,bja->ba", links.weights, self.rows[:, columns][links.nodes])
                mixed = (1 - alpha) * mixed + alpha * averaged
            parts.append(mixed)
        return torch.cat(parts, dim=1)[: len(features)]


_SHAPES = {
    "mean": (("D",), torch.float64),
    "axes": (("D", "A"), torch.float32),
    "least": ((), torch.float64),
    "metric": (("A", "A"), torch.float32),
    "spread": (("A", "A"), torch.float32),
    "places": (("N", "A"), torch.float32),
    "widths": (("N",), torch.float32),
    "rows": (("N", "3A"), torch.float32),
    "centers": (("3A",), torch.float32),
    "scales": (("3",), torch.float32),
}


@torch.no_grad()
def fit_smoothing(keys: Sequence[str], features: Float[Tensor, "N D"], progress: Progress = silent) -> Smoothing:
    """Fit the graph of a pool. The same images in another order give the same bytes on the same machine.

    1. u = unit(Vᵀ(x - mean)) along the 400 strongest principal axes V (fewer if the pool spans fewer).
    2. S = mean (u_i - u_j)(u_i - u_j)ᵀ over the five nearest neighbors j of each i by cosine; s is its mean eigenvalue.
    3. Space of the graph: g = unit((S + 0.3 s I)^(-1/2) u).
    4. Graph: w_ij = exp(-d_ij² / (σ_i σ_j)) between ten nearest neighbors by g, in either direction; σ_i is the
       distance to the tenth; P = D⁻¹W.
    5. Features that are averaged: n = unit((S + s I)^(-1/4) u).
    6. F = (1 - α) Σ_t αᵗ Pᵗ n for α = 0, 0.8 and 0.95, each centered and brought to mean squared norm 1/3.

    Directions along which nearest neighbors differ count little in steps 3 and 5: neighbors often share the class.

    Args:
        keys: Content keys of the images, 64 hex digits each, without duplicates.
        features: Raw features, at least FEWEST rows.
        progress: Receives the progress.

    Raises:
        ValueError: There are too few images, a key is wrong or occurs twice, or features are not finite.

    Source: local bandwidths of Zelnik-Manor & Perona (2004), "Self-tuning spectral clustering"; diffusion of Zhou et
    al. (2003), "Learning with local and global consistency", of features in place of labels; the metric and its
    numbers are alloop's own (benchmarks/pool_features).
    """
    order = _order(keys, features)
    total = 3 * len(keys) + sum(STEPS.values())

    def say(done: int) -> None:
        progress("similar images", done, total)

    say(0)
    arranged = features.detach()[torch.tensor(order)]
    mean, axes, rms = principal_axes(arranged, AXES)
    least = 1e-6 * rms
    directions = torch.cat([_directions(arranged[a:b], mean, axes, least) for a, b in blocks(len(arranged))])
    del arranged
    n = len(directions)
    values, vectors = torch.linalg.eigh(_local_scatter(directions, say))
    values = values.clamp_min(0)
    s = float(values.mean())
    metric = power(values + SHRINKAGE * s, vectors, -1 / 2)
    spread = power(values + s, vectors, -1 / 4)
    places, own = unit(directions @ metric), unit(directions @ spread)
    del directions
    found, squared = _neighbors(places, lambda done: say(n + 2 * done))
    widths = squared.amax(dim=1).sqrt()
    graph = _graph(found, squared, widths)
    parts = _diffused(graph, own, lambda done: say(3 * n + done))
    rows, centers, scales = _normalized(parts)
    return Smoothing(
        keys=tuple(keys[position] for position in order),
        mean=mean,
        axes=axes,
        least=torch.tensor(least, dtype=torch.float64),
        metric=metric,
        spread=spread,
        places=places,
        widths=widths,
        rows=rows,
        centers=centers,
        scales=scales,
    )


def choose_nodes(keys: Sequence[str], labeled: Sequence[str], most: int = MOST_NODES) -> list[str]:
    """Return the images that become nodes, ascending: all if they fit, else the labeled ones and a uniform sample.

    The sample follows a hash of the keys, so a pool that grows keeps most of it. If there are more labeled images than
    nodes, they are sampled alike.

    Args:
        keys: Content keys of the pool.
        labeled: Keys of its labeled images; those outside the pool are ignored.
        most: Largest number of nodes.
    """
    pool = sorted(set(keys))
    if len(pool) <= most:
        return pool
    known = set(labeled)
    ties = tie_keys(pool, derive_seed(0, "nodes")).tolist()
    ordered = sorted(zip(pool, ties, strict=True), key=lambda pair: (pair[0] not in known, pair[1], pair[0]))
    return sorted(key for key, _ in ordered[:most])


def _order(keys: Sequence[str], features: Float[Tensor, "N D"]) -> list[int]:
    if features.ndim != 2 or len(keys) != len(features):
        raise ValueError(f"there are {len(keys)} keys, and features {list(features.shape)}")
    if len(keys) < FEWEST or features.shape[1] == 0:
        raise ValueError(f"similar images need at least {FEWEST} images with features, got {list(features.shape)}")
    order = sorted(range(len(keys)), key=lambda position: keys[position])
    for one, other in itertools.pairwise(order):
        if keys[one] == keys[other]:
            raise ValueError(f"the key {keys[one]} occurs twice, at positions {one} and {other}")
    for key in keys:
        if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
            raise ValueError(f"{key!r} is not a key of 64 hex digits")
    for start, stop in blocks(len(features)):
        _check_finite(features[start:stop], torch.arange(start, stop))
    return order


def _filled(rows: Tensor) -> Tensor:
    """Return a whole block [BLOCK, ...] that begins with these rows; the others are 0."""
    full = rows.new_zeros(BLOCK, rows.shape[1])
    full[: len(rows)] = rows
    return full


def _check_finite(features: Float[Tensor, "B D"], positions: Int[Tensor, "B"]) -> None:
    bad = (~features.isfinite().all(dim=1)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"the features at position {int(positions[bad[0]])} are not finite")


def _directions(
    features: Float[Tensor, "B D"], mean: Float[Tensor, "D"], axes: Float[Tensor, "D A"], least: float
) -> Float[Tensor, "B A"]:
    """Return u [B, A]: direction from the mean to each image along the axes, length 1, or 0 for an image at the mean.

    What rounding leaves of an image at the mean would else point anywhere.
    """
    centered = features.double() - mean
    largest = centered.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    along = (centered / largest).float() @ axes  # divided first, since squares of huge features do not fit float32
    lengths: Tensor = along.double().norm(dim=1, keepdim=True)
    directions = (along.double() / lengths.clamp_min(torch.finfo(torch.float64).tiny)).float()
    return directions.masked_fill_(lengths * largest <= least, 0)


def _local_scatter(directions: Float[Tensor, "N A"], say: _Say) -> Float[Tensor, "A A"]:
    """Return S, the mean outer product of the differences to the five nearest neighbors, in float64."""
    n, n_axes = directions.shape
    scatter = torch.zeros(n_axes, n_axes, dtype=torch.float64)
    for start, stop in blocks(n):
        found = nearest(directions[start:stop], directions, LOCAL, start)
        gaps = (directions[start:stop].unsqueeze(1) - directions[found]).flatten(end_dim=1)
        scatter += (gaps.T @ gaps).double()
        say(stop)
    scatter /= n * LOCAL
    return (scatter + scatter.T) / 2


def _neighbors(places: Float[Tensor, "N A"], say: _Say) -> tuple[Int[Tensor, "N 10"], Float[Tensor, "N 10"]]:
    """Return positions and squared distances of the ten nearest other nodes."""
    n = len(places)
    found, squared = torch.empty(n, NEIGHBORS, dtype=torch.int64), torch.empty(n, NEIGHBORS)
    for start, stop in blocks(n):
        found[start:stop] = nearest(places[start:stop], places, NEIGHBORS, start)
        squared[start:stop] = squared_gaps(places[start:stop], places, found[start:stop])
        say(stop)
    return found, squared


def _graph(
    found: Int[Tensor, "N 10"], squared: Float[Tensor, "N 10"], widths: Float[Tensor, "N"]
) -> scipy.sparse.csr_array:
    """Return P [N, N], whose rows sum to 1.

    The weight of a pair is the same in both directions, so max(w, wᵀ) keeps each pair that occurs in either. Rows are
    normalized in logarithms: where bandwidths are tiny beside distances, all weights of a row could be 0 otherwise.
    """
    n = len(found)
    scaled = (squared.double() / (widths.unsqueeze(1) * widths[found]).double().clamp_min(SMALLEST)).flatten().numpy()
    here, there = np.repeat(np.arange(n), NEIGHBORS), found.flatten().numpy()
    pairs = np.concatenate([here * n + there, there * n + here])
    # A pair that both nodes found is kept once; its distance could round differently in the two directions.
    kept, first = np.unique(pairs, return_index=True)
    exponents = -np.concatenate([scaled, scaled])[first]
    start = np.searchsorted(kept, np.arange(n + 1) * n)
    weights = np.exp(exponents - np.repeat(np.maximum.reduceat(exponents, start[:-1]), np.diff(start)))
    weights /= np.repeat(np.add.reduceat(weights, start[:-1]), np.diff(start))
    return scipy.sparse.csr_array((weights.astype(np.float32), kept % n, start), shape=(n, n))


def _diffused(graph: scipy.sparse.csr_array, own: Float[Tensor, "N A"], say: _Say) -> list[Float[Tensor, "N A"]]:
    """Return n itself, and the result of each diffusion F ← α P F + (1 - α) n from F = n, with the same powers of P."""
    sums = {alpha: (1 - alpha) * own for alpha in STEPS}
    spread = own
    for step in range(1, max(STEPS.values()) + 1):
        spread = torch.from_numpy(graph @ spread.numpy())
        for alpha, last in STEPS.items():
            if step <= last:
                sums[alpha].add_(spread, alpha=alpha**step * (1 if step == last else 1 - alpha))
        say(step)
    return [own, *sums.values()]


def _normalized(
    parts: Sequence[Float[Tensor, "N A"]],
) -> tuple[Float[Tensor, "N 3A"], Float[Tensor, "3A"], Float[Tensor, "3"]]:
    """Return the parts side by side, centered and each of mean squared norm 1/3, with their centers and scales."""
    centers = [part.mean(dim=0, dtype=torch.float64) for part in parts]
    scales, rows = [], torch.empty(len(parts[0]), sum(part.shape[1] for part in parts))
    place = 0
    for part, center in zip(parts, centers, strict=True):
        columns = rows[:, place : place + part.shape[1]]
        torch.sub(part, center.float(), out=columns)
        norm = float(columns.square().sum(dim=1).mean(dtype=torch.float64).sqrt())
        scales.append(norm if norm > 1e-6 else 1.0)  # a pool of equal images has no spread
        columns /= scales[-1] * len(parts) ** 0.5
        place += part.shape[1]
    return rows, torch.cat(centers).float(), torch.tensor(scales)
