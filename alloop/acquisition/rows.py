"""The port for tasks in this room: the rows of a prediction, and how they add up to an image's uncertainty.

A row is one distribution over C outcomes, and it belongs to one image. Every score of `uncertainty.py` is computed of
rows; only the task knows how many rows an image has and what their scores come to.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.composition import CLASSIFICATION
from alloop.predictive import entropy


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Distributions that a prediction consists of.

    Attributes:
        log_probs: Log-probabilities [M, R, C] of M members, R rows and C outcomes.
        owner: Position of the image that each row belongs to [R], ascending.
        n_images: Number of images; an image may have no row.
    """

    log_probs: Float[Tensor, "M R C"]
    owner: Int[Tensor, "R"]
    n_images: int


class RowRule(Protocol):
    """Rule of one task."""

    def rows(self, log_probs: Float[Tensor, "M N K"]) -> Rows:
        """Return the rows of predictions."""
        ...

    def add_up(self, values: Float[Tensor, "R"], rows: Rows) -> Float[Tensor, "N"]:
        """Return the score of each image from the scores of its rows."""
        ...

    def certainty(self, entropies: Float[Tensor, "N"], n_classes: int) -> Float[Tensor, "N"]:
        """Return the certainty of each image in [0, 1], which orders the questions that people get."""
        ...

    def share_of_highest(self, calibrated_log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N"]:
        """Return the predictive entropy of each image as a share of the highest one, in [0, 1]."""
        ...

    def sharpen(self, calibrated_log_probs: Float[Tensor, "N K"], power: float) -> Float[Tensor, "N K"]:
        """Return predictions whose rows are p^power / Σ p^power, as log-probabilities. 1 changes nothing.

        Args:
            calibrated_log_probs: Calibrated log p̄; -inf is a probability of 0, which stays 0.
            power: Power β above 0. The larger it is, the more an entropy counts only the most probable outcomes.
        """
        ...

    def mass(self, calibrated_log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return how many of each class are expected in each image, in float64."""
        ...


class OneRow:
    """Rule of a classification: an image has one row, the distribution over its class."""

    def rows(self, log_probs: Float[Tensor, "M N K"]) -> Rows:
        n_images = log_probs.shape[1]
        return Rows(log_probs, torch.arange(n_images), n_images)

    def add_up(self, values: Float[Tensor, "R"], rows: Rows) -> Float[Tensor, "N"]:
        return values

    def certainty(self, entropies: Float[Tensor, "N"], n_classes: int) -> Float[Tensor, "N"]:
        return (1 - entropies / math.log(n_classes)).clamp(0, 1)

    def share_of_highest(self, calibrated_log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N"]:
        n_classes = calibrated_log_probs.shape[1]
        return (entropy(calibrated_log_probs.float()) / math.log(n_classes)).clamp(0, 1)

    def sharpen(self, calibrated_log_probs: Float[Tensor, "N K"], power: float) -> Float[Tensor, "N K"]:
        return (power * calibrated_log_probs.float()).log_softmax(dim=-1)

    def mass(self, calibrated_log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return calibrated_log_probs.double().exp()


ONE_ROW = OneRow()
TASKS: Mapping[str, RowRule] = {CLASSIFICATION: ONE_ROW}


def image_scores(
    rule: RowRule, score: Callable[[Float[Tensor, "M R C"]], Float[Tensor, "R"]], log_probs: Float[Tensor, "M N K"]
) -> Float[Tensor, "N"]:
    """Return a score of each image.

    Args:
        rule: Rule of the task.
        score: Score of rows, a function of `uncertainty.py`.
        log_probs: Predictions of the members; M = 1 for the calibrated prediction.
    """
    rows = rule.rows(log_probs)
    return rule.add_up(score(rows.log_probs), rows)
