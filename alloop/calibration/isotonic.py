"""Isotonic regression: the best non-decreasing curve for each class.

Source: Zadrozny & Elkan (2002); docs/methods.md section 7.3.
"""

import dataclasses
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.calibration.calibrator import check_targets, normalize_probs, prepare
from alloop.composition import CALIBRATORS

Array = npt.NDArray[np.float64]
Knots = tuple[tuple[float, float], ...]  # (probability, calibrated probability), ascending


@dataclasses.dataclass(frozen=True, slots=True)
class Isotonic:
    """Curve of each class, linear between its knots and constant outside. Each row is divided by its sum.

    Attributes:
        curves: Knots of the K curves.
        floor: Values are kept in [floor, 1 - floor], because an exact 0 makes the NLL infinite.
    """

    curves: tuple[Knots, ...]
    floor: float
    name: ClassVar[str] = "isotonic"

    def apply(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return calibrated log-probabilities. The top class may change, and ties appear."""
        probs = prepare(log_probs).exp().numpy()
        curves = np.stack([apply_curve(knots, column) for knots, column in zip(self.curves, probs.T, strict=True)], 1)
        calibrated = normalize_probs(curves.clip(self.floor, 1 - self.floor), probs)
        return prepare(torch.from_numpy(calibrated).log())


def fit_isotonic(
    log_probs: Float[Tensor, "N K"],
    targets: Int[Tensor, "N"],
    fewest: int = CALIBRATORS["isotonic"].smallest,
    floor: float | None = None,
) -> Isotonic:
    """Fit the curve of every class: probability against the share of images of the class.

    Args:
        log_probs: Held-out predictions.
        targets: Class positions.
        fewest: Smallest number of images.
        floor: Lowest value; None: 1 / (2 N).

    Raises:
        ValueError: There are fewer than `fewest` images, or none.
    """
    labels = check_targets(log_probs, targets).numpy()
    if len(labels) < max(1, fewest):
        raise ValueError(f"isotonic regression needs at least {max(1, fewest)} images, got {len(labels)}")
    probs = prepare(log_probs).exp().numpy()
    curves = tuple(fit_curve(column, (labels == k).astype(np.float64)) for k, column in enumerate(probs.T))
    return Isotonic(curves, 1 / (2 * len(labels)) if floor is None else floor)


def fit_curve(probs: Array, labels: Array) -> Knots:
    """Fit a curve by pooling adjacent violators; equal probabilities are averaged first. Values are in [0, 1]."""
    from sklearn.isotonic import IsotonicRegression  # slow to import, and the other calibrators do without

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probs, labels)
    return tuple(zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True))


def apply_curve(knots: Knots, probs: Array) -> Array:
    """Apply a curve: linear between knots, constant before the first and after the last."""
    x, y = np.array(knots, dtype=np.float64).T
    return np.asarray(np.interp(probs, x, y))
