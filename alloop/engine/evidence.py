"""What a query strategy may look at besides scores: features of the trunk as published, and the model's head."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from alloop.config.schema import Config
from alloop.engine.build import build_backbone, build_hardware, search_paths
from alloop.engine.calibrate import apply_calibration
from alloop.engine.device import explained_shortage
from alloop.engine.features import ensure_features
from alloop.engine.jobs import FeatureJob, FeatureResult
from alloop.engine.model_files import load_model
from alloop.engine.predict import Predictor
from alloop.predictive import mean_log_probs
from alloop.progress import Progress, silent
from alloop.records import ModelFiles

Head = Callable[[Float[Tensor, "B D"]], Float[Tensor, "B K"]]


@explained_shortage()
def run_features(job: FeatureJob, progress: Progress = silent) -> FeatureResult:
    """Features of images, computed where the cache lacks them; memory is that of the result."""
    hardware = build_hardware(job.config, job.device)
    backbone = build_backbone(job.config, search_paths(job.cache))
    cache, failed = ensure_features(job.images, backbone, job.cache, hardware, progress)
    gone = {image_id for image_id, _ in failed}
    there = [image for image in job.images if image.image_id not in gone]
    return FeatureResult(
        image_ids=np.array([image.image_id for image in there], dtype=np.int64),
        features=cache.take([image.key for image in there]),
        failed=failed,
    )


def count_features(job: FeatureJob) -> int:
    """D, before anything is computed."""
    return build_backbone(job.config, search_paths(job.cache)).n_features


def load_head(config: Config, model: ModelFiles) -> Head:
    """Features [B, D] to calibrated log p̄ [B, K] of a model version, on the CPU.

    Where the trunk was trained this is the first network of an ensemble, whose features `features.npy` holds.

    Raises:
        ModelError: The version is damaged.
    """
    version = load_model(model)
    predictor = Predictor(version.as_trained(config), int(version.metadata["seed"]))
    n_networks = 1 if version.trunk else len(version.files)
    heads = [version.load_network(number).heads for number in range(n_networks)]

    def head(features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        members = predictor.log_probs(torch.cat([predictor.logits(part, features) for part in heads]))
        return apply_calibration(version.calibration, mean_log_probs(members))

    return head
