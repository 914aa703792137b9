"""Head of a model version, for query strategies that look at it."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.config.schema import Config
from alloop.engine.calibrate import apply_calibration
from alloop.engine.head_passes import HeadPasses
from alloop.engine.model_files import load_model
from alloop.predictive import mean_log_probs
from alloop.records import ModelFiles

Head = Callable[[Float[Tensor, "B D"]], Float[Tensor, "B K"]]


def load_head(config: Config, model: ModelFiles) -> Head:
    """Return a function from features [B, D] to calibrated log p̄ [B, K], on the CPU.

    For an ensemble with trained trunks the function is the first network, whose features are kept with the scores.

    Raises:
        ModelError: The version is damaged.
    """
    version = load_model(model)
    passes = HeadPasses(version.as_trained(config), int(version.metadata["seed"]))
    n_networks = 1 if version.trunk else len(version.files)
    heads = [version.load_network(number).heads for number in range(n_networks)]

    def head(features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        members = passes.member_log_probs(torch.cat([passes.logits(part, features) for part in heads]))
        return apply_calibration(version.calibration, mean_log_probs(members))

    return head
