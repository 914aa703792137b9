"""Temperature scaling: one number that adjusts the model's confidence to its holdout accuracy.

Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017;
docs/methods.md section 7.1.
"""

import dataclasses
import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.calibration.calibrator import prepare
from alloop.composition import CALIBRATORS

LOWEST, HIGHEST = 0.05, 20.0  # bounds of T
FEWEST = CALIBRATORS["temperature"].smallest  # images; with fewer T stays 1
_STEPS = 60  # of bisection over ln(20 / 0.05) = 6: far below 1e-8 relative


@dataclasses.dataclass(frozen=True, slots=True)
class Temperature:
    """Calibrator softmax(log p / T)."""

    temperature: float
    name: ClassVar[str] = "temperature"

    def apply(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return calibrated log-probabilities. The top class never changes."""
        return prepare(apply_temperature(prepare(log_probs), self.temperature))


UNIT = Temperature(1.0)  # changes nothing


def apply_temperature(log_probs: Float[Tensor, "N K"], temperature: float) -> Float[Tensor, "N K"]:
    """Return the log of softmax(log p / T). T = 1 changes nothing, and the top class never changes."""
    return (log_probs / temperature).log_softmax(dim=-1)


def solve_temperature(log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"] | Float[Tensor, "N K"]) -> float:
    """Return the T in [0.05, 20] with the smallest mean NLL of softmax(log p / T), in float64.

    NLL is convex in β = 1/T, so its derivative mean(E_p[z] - z_y) has one root; it is bracketed in ln T and bisected.
    If all rows are constant, every T is equally good, and 1 is returned.

    Args:
        log_probs: Log-probabilities or logits of the pooled prediction.
        targets: Class positions [N], or soft rows [N, K].
    """
    # A probability of exactly 0 stays near 0 at every T; 0 * inf must not appear.
    wide = log_probs.detach().cpu().double().clamp_min(-1e30)
    wide = wide - wide.amax(dim=-1, keepdim=True)
    if not bool((wide != 0).any()):
        return 1.0
    at_target = _expectation(wide, _one_hot(targets, wide.shape[-1]))
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        mean = _expectation(wide, (wide / math.exp(middle)).softmax(dim=-1))
        # If predictions are too sharp (large β), the expected logit lies above the target's, and T must grow.
        low, high = (middle, high) if float((mean - at_target).mean()) > 0 else (low, middle)
    return min(max(math.exp((low + high) / 2), LOWEST), HIGHEST)


def fit_temperature(log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]) -> tuple[Temperature, str]:
    """Fit a temperature for any N, and return it with a note.

    If no prediction is wrong, T stays 1: the NLL falls until T is 0, where every probability is 0 or 1 and images
    cannot be ranked. The note reports this, and also a T at its upper bound.
    """
    temperature = solve_temperature(log_probs, targets)
    if temperature < LOWEST * (1 + 1e-6):
        return UNIT, f"Too few of the {len(targets)} holdout predictions are wrong to fit a temperature; T = 1."
    if temperature > HIGHEST * (1 - 1e-6):
        note = f"The temperature reached its bound {HIGHEST:g}: the predictions are no better than chance."
        return Temperature(temperature), note
    return Temperature(temperature), ""


def _one_hot(targets: Tensor, n_classes: int) -> Tensor:
    cpu = targets.detach().cpu()
    return cpu.double() if cpu.is_floating_point() else torch.nn.functional.one_hot(cpu.long(), n_classes).double()


def _expectation(values: Tensor, probs: Tensor) -> Tensor:
    return (values * probs).sum(dim=-1)
