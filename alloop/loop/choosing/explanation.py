"""Explanation of one image and the questions about it: plain data, no tensors."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Asked:
    """A query about the image, as it was chosen and as it stands."""

    round_number: int
    reason: str
    strategy: str
    rank: int
    score: float | None
    probability: float | None
    draw_number: int | None
    draw_pool: int | None
    status: str
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Rank:
    """A score of the image and its place among the scored pool, from 1; equal scores share the best place."""

    value: float
    rank: int
    of: int


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """A labeled training image, and the cosine of its features with the image's."""

    sha256: str
    path: str
    class_name: str
    similarity: float
    depth: int | None = None  # bits a channel at which the image is read; None for an image with 8 bits


@dataclasses.dataclass(frozen=True)
class Explanation:
    """One image.

    Attributes:
        standing: Whether it can be asked about now, and if not why, in words.
        round_number, model: Where the scores are from: the round that asked about the image, else the newest one.
        probs: Class → calibrated probability, the highest first.
        entropy: Nats.
        ranks: Strategy → score and rank; also `ood`.
        neighbors: The nearest first.
        note: Why there are no neighbors.
        depth: Bits a channel at which the image is read; None for an image with 8 bits.
    """

    image_id: int
    sha256: str
    path: str
    split: str
    label: str | None
    standing: str
    asked: tuple[Asked, ...]
    round_number: int | None = None
    model: str | None = None
    probs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    entropy: float | None = None
    suspect: bool = False
    ranks: Mapping[str, Rank] = dataclasses.field(default_factory=dict)
    neighbors: tuple[Neighbor, ...] = ()
    note: str = ""
    depth: int | None = None
