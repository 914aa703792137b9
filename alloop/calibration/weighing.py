"""Weights of two predictions of one model: by heads on raw features, and by heads on smoothed features.

log p ∝ a log p_raw + b log p_smoothed. Fitted to the holdout, the weights take the place of a temperature, and they
guard against smoothing that hurts: if it does, b shrinks and a grows (docs/methods.md section 13).
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor

from alloop.calibration.calibrator import RAW, SMOOTHED, Calibrator, prepare

STRENGTH = 0.005  # of the penalty a² + (b - 1)², in nats per image
CAUTIOUS = 1.2  # temperature of the smoothed heads while the holdout is too small to fit weights


@dataclasses.dataclass(frozen=True, slots=True)
class Weighed:
    """Calibrator of predictions [N, 2, K] of raw and smoothed heads: weights, then a calibrator of the result.

    Attributes:
        raw: Weight a of log p of the raw heads, at least 0.
        smoothed: Weight b of log p of the smoothed heads, at least 0.
        then: Calibrator of the weighed prediction; `Unchanged` if the weights are all there is.
    """

    raw: float
    smoothed: float
    then: Calibrator
    name: ClassVar[str] = "weighed"

    def apply(self, log_probs: Float[Tensor, "N 2 K"]) -> Float[Tensor, "N K"]:
        """Return calibrated log-probabilities. The top class may be that of either prediction, or another one."""
        return self.then.apply(weigh(log_probs, self.raw, self.smoothed))


def weigh(log_probs: Float[Tensor, "N 2 K"], raw: float, smoothed: float) -> Float[Tensor, "N K"]:
    """Return normalized a log p_raw + b log p_smoothed, float64."""
    prepared = prepare(log_probs)
    return (raw * prepared[:, RAW] + smoothed * prepared[:, SMOOTHED]).log_softmax(dim=-1)


def fit_weights(log_probs: Float[Tensor, "N 2 K"], targets: Int[Tensor, "N"]) -> tuple[float, float]:
    """Return a, b ≥ 0 with the smallest mean NLL of the weighed prediction + 0.005 (a² + (b - 1)²), in float64.

    The sum is strictly convex, so there is one solution. It is found from a = 0, b = 1, which is the prediction of the
    smoothed heads.

    Args:
        log_probs: Held-out predictions of raw and smoothed heads; at least one image.
        targets: Class positions [N].
    """
    two = prepare(log_probs).transpose(1, 2).numpy()  # [N, K, 2]
    at_target = two[np.arange(len(two)), targets.numpy()]  # [N, 2]

    def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        scores = two @ weights
        highest = scores.max(axis=1)
        exponentials = np.exp(scores - highest[:, None])
        total = exponentials.sum(axis=1)
        nll = highest + np.log(total) - at_target @ weights
        expected = np.einsum("nk,nkc->nc", exponentials / total[:, None], two)
        off = weights - np.array([0.0, 1.0])
        return float(nll.mean() + STRENGTH * off @ off), (expected - at_target).mean(axis=0) + 2 * STRENGTH * off

    found: Any = minimize(
        loss,
        np.array([0.0, 1.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * 2,
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 500},
    )
    return float(found.x[0]), float(found.x[1])
