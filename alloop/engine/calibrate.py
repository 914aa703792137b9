"""Fit the calibrator that [calibration] names to the holdout, and apply the calibrator of a model version."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.calibration.choose import cross_fit, from_json, to_json
from alloop.calibration.temperature import apply_temperature
from alloop.records import Calibration


def calibrate(
    method: str, pooled_log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"], seed: int
) -> tuple[Float[Tensor, "N K"], Calibration]:
    """Return cross-fitted calibrated log p̄, in which no image calibrated itself, and the calibrator fitted to all.

    Args:
        method: `[calibration] method`.
        pooled_log_probs: Uncalibrated log p̄ [N, K]. N may be 0.
        targets: Class positions [N].
        seed: Seed for the folds.
    """
    calibrated, fitted = cross_fit(method, pooled_log_probs, targets, seed)
    data = to_json(fitted)
    name = str(data["calibrator"]["name"])
    return calibrated, Calibration(
        temperature=float(data["calibrator"].get("temperature", 1.0)),
        n=fitted.n,
        nll_before=fitted.nll_before,
        nll_after=fitted.nll_after,
        note=fitted.note,
        method=name,
        fitted=None if name in ("temperature", "none") else data,
    )


def apply_calibration(calibration: Calibration, pooled_log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Return calibrated log p̄, float32."""
    with torch.inference_mode():
        if calibration.fitted is None:
            return apply_temperature(pooled_log_probs.double(), calibration.temperature).float()
        return from_json(calibration.fitted).calibrator.apply(pooled_log_probs).float()
