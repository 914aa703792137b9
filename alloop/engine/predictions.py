"""Predictions of a model for a batch of images."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from alloop.acquisition.rows import TASKS as RULES
from alloop.acquisition.rows import image_scores
from alloop.acquisition.scores import SCORES
from alloop.engine.features import Failed
from alloop.engine.targets import TASKS as CODINGS
from alloop.records import ImageRef


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for a batch of images [B].

    A model of an exported folder gives the calibrated prediction alone: the last four attributes are None then.

    Attributes:
        images: Images of the batch that could be read. The id of an image outside the pool is its position among the
            images that were given, from 0.
        failed: Ids of the other images of the batch, and the reasons.
        task: Name of the task.
        classes: Names of the classes [K].
        calibrated_log_probs: The prediction of the model [B, K]; without the calibrator, that before calibration.
        features: Features [B, D] by the trunk of the first network.
        member_log_probs: Prediction of every member [M, B, K], uncalibrated. Of a model with raw and smoothed heads,
            each member's two predictions are weighed like the model's, with weights of sum 1.
        uncalibrated_log_probs: Log of the members' mean probability [B, K], or [B, 2, K] by raw and smoothed heads:
            what calibrators are fitted to.
        ood: OOD score of every image [B]. Higher means less like the training images. It is computed from raw features,
            because smoothing makes every image resemble the pool.
    """

    images: Sequence[ImageRef]
    failed: Failed
    task: str
    classes: tuple[str, ...]
    calibrated_log_probs: Float[Tensor, "B K"]
    features: Float[Tensor, "B D"] | None = None
    member_log_probs: Float[Tensor, "M B K"] | None = None
    uncalibrated_log_probs: Float[Tensor, "B *two K"] | None = None
    ood: Float[Tensor, "B"] | None = None

    @property
    def log_probs(self) -> Float[Tensor, "B K"]:
        """The prediction of the model: `calibrated_log_probs`."""
        return self.calibrated_log_probs

    @property
    def guesses(self) -> npt.NDArray[np.object_]:
        """Labels [B] that the predictions amount to; for a classification, the most probable classes."""
        return CODINGS[self.task](self.classes).guess(self.calibrated_log_probs.numpy())

    @property
    def entropy(self) -> Float[Tensor, "B"]:
        """Predictive entropy of the calibrated predictions, in nats."""
        return self._score("entropy", self.calibrated_log_probs.unsqueeze(0))

    @property
    def mutual_information(self) -> Float[Tensor, "B"] | None:
        """Mutual information between prediction and member, in nats, before calibration; None without two members."""
        if self.member_log_probs is None or len(self.member_log_probs) == 1:
            return None
        return self._score("mutual-information", self.member_log_probs)

    def _score(self, name: str, log_probs: Float[Tensor, "M B K"]) -> Float[Tensor, "B"]:
        return image_scores(RULES[self.task], SCORES[name].function, log_probs).float()
