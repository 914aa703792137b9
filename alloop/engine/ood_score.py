"""OOD scores of images, from what a model gives. `engine.odin` has the one that needs pixels and a gradient."""

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.evaluation import ood


def ood_score(
    name: str,
    logits: Float[Tensor, "M B K"],
    lengths: Float[Tensor, "M B"],
    member_log_probs: Float[Tensor, "M B K"],
    calibrated_log_probs: Float[Tensor, "B K"],
) -> Float[Tensor, "B"]:
    """Score of every image: the higher, the less it resembles the training images.

    Args:
        name: `[acquisition] ood_score`; not "odin", for which see `engine.odin`.
        logits: Raw logits. Energy and max logit are means over members.
        lengths: L1 norms from `HeadPasses.lengths`, for GradNorm.
        member_log_probs: Uncalibrated prediction of every member, for mutual information.
        calibrated_log_probs: Log p̄, for scores that are computed from one distribution.
    """
    with torch.inference_mode():
        if name == "gradnorm":
            # Features count by their norm only: one number that has it will do.
            return ood.gradnorm(lengths.unsqueeze(-1), logits).float()
        if name in ("energy", "max-logit"):
            return (ood.energy if name == "energy" else ood.max_logit)(logits).float()
        if name == "mutual-information":
            return ood.mutual_information(member_log_probs).float()
        of_pooled = {"msp": ood.msp, "entropy": ood.entropy, "gen": ood.gen}
        return of_pooled[name](calibrated_log_probs.unsqueeze(0)).float()
