"""Temperature scaling: one number that makes the model's confidence match its holdout accuracy.

Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017; methods.md section 7.1.
"""

import dataclasses
import logging
import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.calibration.calibrator import prepare
from alloop.calibration.folds import draw_folds
from alloop.records import Calibration

log = logging.getLogger(__name__)

LOWEST, HIGHEST = 0.05, 20.0  # bounds of T
FEWEST = 50  # images; with fewer T stays 1
_STEPS = 60  # of bisection over ln(20 / 0.05) = 6: far below 1e-8 relative


@dataclasses.dataclass(frozen=True, slots=True)
class Temperature:
    """Softmax(log p / T), as one of the calibrators to choose from."""

    temperature: float
    name: ClassVar[str] = "temperature"

    def apply(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Calibrated log-probabilities; the top class never changes."""
        return prepare(apply_temperature(prepare(log_probs), self.temperature))


def apply_temperature(log_probs: Float[Tensor, "N K"], temperature: float) -> Float[Tensor, "N K"]:
    """Log-probabilities of softmax(log p / T). T = 1 changes nothing; the top class never changes."""
    return (log_probs / temperature).log_softmax(dim=-1)


def solve_temperature(log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"] | Float[Tensor, "N K"]) -> float:
    """T in [0.05, 20] with the smallest mean NLL of softmax(log p / T), in float64.

    NLL is convex in β = 1/T, so its derivative mean(E_p[z] - z_y) has one root; it is bracketed in ln T and bisected.
    All rows constant: every T is as good, and 1 is returned.

    Args:
        log_probs: Log-probabilities or logits; the pooled prediction, not a member's.
        targets: Class positions [N], or soft rows [N, K].
    """
    # A probability of exactly 0 stays near 0 at every T, and must not become 0 * inf.
    wide = log_probs.detach().cpu().double().clamp_min(-1e30)
    wide = wide - wide.amax(dim=-1, keepdim=True)
    if not bool((wide != 0).any()):
        return 1.0
    at_target = _expectation(wide, _one_hot(targets, wide.shape[-1]))
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        mean = _expectation(wide, (wide / math.exp(middle)).softmax(dim=-1))
        # Too sharp (large β): the expected logit lies above the target's, and T must grow.
        low, high = (middle, high) if float((mean - at_target).mean()) > 0 else (low, middle)
    return min(max(math.exp((low + high) / 2), LOWEST), HIGHEST)


def fit_temperature(
    log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"] | Float[Tensor, "N K"], fewest: int = FEWEST
) -> Calibration:
    """Fit T on held-out predictions, with the evidence for it.

    Fewer than `fewest` images leave T at 1, and so do predictions that are never wrong: their NLL only falls as T goes
    to 0, where every probability is 0 or 1 and nothing is left to rank images by. The note says so, and also when T
    runs into its upper bound.

    Raises:
        ValueError: Fewer than two classes, or the numbers of rows differ.
    """
    n, n_classes = log_probs.shape
    if n_classes < 2 or len(targets) != n:
        raise ValueError(f"need log-probabilities [N, K >= 2] and N targets, got {[n, n_classes]} and {len(targets)}")
    if n < fewest:
        before = _mean_nll(log_probs, targets) if n else None
        note = f"{n} holdout labels are too few to fit a temperature (fewer than {fewest}); T = 1."
        return Calibration(1.0, n, before, before, note)
    temperature, note = _solve_safely(log_probs, targets)
    if note:
        log.warning("%s", note)
    after = _mean_nll(apply_temperature(log_probs.double(), temperature), targets)
    return Calibration(temperature, n, _mean_nll(log_probs, targets), after, note)


def cross_fit_temperature(
    log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"], seed: int, n_folds: int = 5
) -> tuple[Float[Tensor, "N K"], Calibration]:
    """Calibrated log-probabilities in which no image was calibrated by itself, and the temperature fitted on all.

    Every image gets the temperature fitted on the other folds; folds keep the classes' shares where there are enough
    of each. With too few images for a fit everything stays as it is.

    Args:
        log_probs: Pooled, uncalibrated.
        targets: Class positions [N].
        seed: Draws the folds.
        n_folds: At least 2.

    Returns:
        Log-probabilities [N, K] in float32, and what scoring should apply.
    """
    fitted = fit_temperature(log_probs, targets)
    calibrated = log_probs.detach().cpu().double().clone()
    if fitted.n >= FEWEST:
        for rest, fold in draw_folds(targets.cpu().numpy(), seed, n_folds):
            temperature, _ = _solve_safely(log_probs[rest], targets[rest])
            calibrated[fold] = apply_temperature(calibrated[fold], temperature)
    return calibrated.float(), fitted


def fit_temperature_safely(log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"]) -> tuple[Temperature, str]:
    """A temperature to be used, whatever N, and what is to be said about it; see `fit_temperature`."""
    temperature, note = _solve_safely(log_probs, targets)
    return Temperature(temperature), note


def _solve_safely(log_probs: Tensor, targets: Tensor) -> tuple[float, str]:
    """A temperature to be used, and what is to be said about it; see `fit_temperature`."""
    temperature = solve_temperature(log_probs, targets)
    if temperature < LOWEST * (1 + 1e-6):
        return 1.0, f"Too few of the {len(targets)} holdout predictions are wrong to fit a temperature; T = 1."
    if temperature > HIGHEST * (1 - 1e-6):
        return (
            temperature,
            f"The temperature ran into its bound {HIGHEST:g}: the predictions are no better than chance.",
        )
    return temperature, ""


def _one_hot(targets: Tensor, n_classes: int) -> Tensor:
    cpu = targets.detach().cpu()
    return cpu.double() if cpu.is_floating_point() else torch.nn.functional.one_hot(cpu.long(), n_classes).double()


def _expectation(values: Tensor, probs: Tensor) -> Tensor:
    return (values * probs).sum(dim=-1)


def _mean_nll(log_probs: Tensor, targets: Tensor) -> float:
    log_p = log_probs.detach().cpu().double().log_softmax(dim=-1)
    share = _one_hot(targets, log_p.shape[-1])
    return float(-torch.where(share == 0, 0.0, share * log_p).sum(dim=-1).mean())
