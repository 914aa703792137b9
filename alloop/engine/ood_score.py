"""OOD scores of images, computed from a model's outputs. `engine.odin` has the score that needs pixels."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.evaluation import ood


@dataclasses.dataclass(frozen=True)
class ModelOutputs:
    """Outputs of a model that OOD scores are computed from.

    Attributes:
        logits: Raw logits.
        lengths: L1 norms of the features that each member saw, from `HeadPasses.lengths`.
        member_log_probs: Uncalibrated prediction of every member.
        shown_log_probs: Prediction for the scores of one distribution: a single row, or rows whose mean it is.
    """

    logits: Float[Tensor, "M B K"]
    lengths: Float[Tensor, "M B"]
    member_log_probs: Float[Tensor, "M B K"]
    shown_log_probs: Float[Tensor, "P B K"]


# All scores of `composition.OOD_SCORES` that need no images. Energy and max logit are means over members.
SCORES: Mapping[str, Callable[[ModelOutputs], Tensor]] = {
    "msp": lambda outputs: ood.msp(outputs.shown_log_probs),
    "entropy": lambda outputs: ood.entropy(outputs.shown_log_probs),
    "gen": lambda outputs: ood.gen(outputs.shown_log_probs),
    "max-logit": lambda outputs: ood.max_logit(outputs.logits),
    "energy": lambda outputs: ood.energy(outputs.logits),
    # GradNorm uses the norm of the features only, so one number that has this norm is enough.
    "gradnorm": lambda outputs: ood.gradnorm(outputs.lengths.unsqueeze(-1), outputs.logits),
    "mutual-information": lambda outputs: ood.mutual_information(outputs.member_log_probs),
}


def ood_score(name: str, outputs: ModelOutputs) -> Float[Tensor, "B"]:
    """Score every image: the higher, the less it resembles the training images.

    Args:
        name: A key of `SCORES`.
        outputs: Outputs of the model for these images.
    """
    with torch.inference_mode():
        return SCORES[name](outputs).float()
