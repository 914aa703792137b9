"""Explanation of one image and the questions about it: plain data, no tensors."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Asked:
    """Query about the image, with its choice and its present state."""

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
    """Score of the image with its rank in the scored pool, from 1. Equal scores share the best rank."""

    value: float
    rank: int
    of: int


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """Labeled training image, with the cosine similarity of its features."""

    sha256: str
    path: str
    class_name: str
    similarity: float
    depth: int | None = None  # bits a channel at which the image is read; None for an image with 8 bits


@dataclasses.dataclass(frozen=True)
class Automatic:
    """Automatic label of the image, which no person gave: its class, and the look and the model that it comes from.

    Attributes:
        probability: Probability of the class before calibration.
        threshold: Smallest probability that the look accepted.
        max_error, confidence: The promise of the look.
    """

    class_name: str
    probability: float
    threshold: float
    model: str
    look: int
    max_error: float
    confidence: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Explanation of one image.

    Attributes:
        standing: Sentence about whether it can be asked about now.
        automatic: Automatic label; None without one.
        round_number, model: Source of the scores: the round that asked about the image, else the newest one.
        probs: Class → calibrated probability, highest first.
        entropy: Entropy in nats.
        ranks: Strategy → score and rank; also `ood`.
        neighbors: Nearest labeled images, the nearest first.
        note: Reason for having no neighbors.
        depth: Bits a channel at which the image is read; None for an image with 8 bits.
    """

    image_id: int
    sha256: str
    path: str
    split: str
    label: str | None
    standing: str
    asked: tuple[Asked, ...]
    automatic: Automatic | None = None
    round_number: int | None = None
    model: str | None = None
    probs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    entropy: float | None = None
    suspect: bool = False
    ranks: Mapping[str, Rank] = dataclasses.field(default_factory=dict)
    neighbors: tuple[Neighbor, ...] = ()
    note: str = ""
    depth: int | None = None
