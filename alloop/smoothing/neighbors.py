"""Nearest neighbors, principal axes and powers of matrices, in blocks whose shape depends on no other image."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 256  # rows that are compared with all nodes at a time
ADDED = 4096  # rows that are added to the covariance at a time
VARIED = 1e-14  # smallest variance along an axis, as a share of the mean squared feature norm


def blocks(n_rows: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of blocks of rows."""
    for start in range(0, n_rows, BLOCK):
        yield start, min(start + BLOCK, n_rows)


def unit(rows: Float[Tensor, "N A"]) -> Float[Tensor, "N A"]:
    """Return rows of length 1; rows of zeros stay."""
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp_min(torch.finfo(rows.dtype).tiny)


def nearest(
    rows: Float[Tensor, "B A"], nodes: Float[Tensor, "N A"], k: int, first: int | None = None
) -> Int[Tensor, "B k"]:
    """Return the positions of the k nearest nodes by cosine.

    Args:
        rows: Rows of length 1 or 0.
        nodes: Nodes of length 1 or 0.
        k: Number of neighbors, less than N.
        first: Position of the first row among the nodes, if the rows are nodes; a node is not its own neighbor.
    """
    cosines = rows @ nodes.T
    if first is not None:
        here = torch.arange(len(rows))
        cosines[here, first + here] = -torch.inf
    return cosines.topk(k, dim=1).indices


def squared_gaps(
    rows: Float[Tensor, "B A"], nodes: Float[Tensor, "N A"], found: Int[Tensor, "B k"]
) -> Float[Tensor, "B k"]:
    """Return squared distances from each row to its neighbors; exactly 0 between copies."""
    return (rows.unsqueeze(1) - nodes[found]).square().sum(dim=2)


def principal_axes(features: Float[Tensor, "N D"], most: int) -> tuple[Float[Tensor, "D"], Float[Tensor, "D A"], float]:
    """Return the mean (float64), the strongest principal axes as columns, and the root mean square distance to it.

    Axes without variance are left out, since only rounding decides where they point; one axis is always kept. The sign
    of an axis is arbitrary.

    Args:
        features: Finite rows.
        most: Largest number of axes.
    """
    n, n_features = features.shape
    mean = features.mean(dim=0, dtype=torch.float64)
    if n <= n_features:
        centered = features.double() - mean
        values, vectors = torch.linalg.eigh(centered @ centered.T / n)
    else:
        covariance = torch.zeros(n_features, n_features, dtype=torch.float64)
        for start in range(0, n, ADDED):
            centered = features[start : start + ADDED].double() - mean
            covariance += centered.T @ centered
        values, vectors = torch.linalg.eigh(covariance / n)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)  # the strongest first
    total = float(values.sum() + mean.square().sum())
    kept = max(1, min(most, int((values > VARIED * total).sum())))
    axes = vectors[:, :kept]
    if n <= n_features:
        axes = (features.double() - mean).T @ axes
        axes = axes / axes.norm(dim=0, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return mean, axes.float().contiguous(), float(values.sum().sqrt())


def power(values: Float[Tensor, "A"], vectors: Float[Tensor, "A A"], exponent: float) -> Float[Tensor, "A A"]:
    """Return a power of the symmetric matrix with these eigenvalues and eigenvectors; the identity for matrix 0."""
    if float(values.max()) <= 0:
        return torch.eye(len(values))
    raised = (vectors * values**exponent) @ vectors.T
    return ((raised + raised.T) / 2).float()
