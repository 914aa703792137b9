"""Fit the calibrator that [calibration] names to the holdout, and apply the calibrator of a model version."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.calibration.calibrator import FittedCalibrator
from alloop.calibration.choose import cross_fit, fit_calibrator, from_json, to_json
from alloop.calibration.temperature import apply_temperature
from alloop.calibration.weighing import Weighed
from alloop.records import Calibration


def calibrate(
    method: str, pooled_log_probs: Float[Tensor, "N *two K"], targets: Int[Tensor, "N"], seed: int
) -> tuple[Float[Tensor, "N K"], Calibration]:
    """Return cross-fitted calibrated log p̄, in which no image calibrated itself, and the calibrator fitted to all.

    Args:
        method: `[calibration] method`.
        pooled_log_probs: Uncalibrated log p̄ [N, K], or [N, 2, K] of raw and smoothed heads. N may be 0.
        targets: Class positions [N].
        seed: Seed for the folds.
    """
    calibrated, fitted = cross_fit(method, pooled_log_probs, targets, seed)
    return calibrated, as_record(fitted)


def calibrate_by_training_labels(
    method: str, pooled_log_probs: Float[Tensor, "N *two K"], targets: Int[Tensor, "N"], seed: int
) -> Calibration:
    """Return a calibrator fitted to out-of-fold predictions of training images; for the arguments see `calibrate`."""
    return as_record(fit_calibrator(method, pooled_log_probs, targets, seed))


def as_record(fitted: FittedCalibrator) -> Calibration:
    """Return a calibrator as it is stored with a model."""
    data = to_json(fitted)
    calibrator = fitted.calibrator
    weights = (calibrator.raw, calibrator.smoothed) if isinstance(calibrator, Weighed) else None
    inner = data["calibrator"] if weights is None else data["calibrator"]["then"]
    name = str(inner["name"])
    is_number = weights is None and name in ("temperature", "none")
    return Calibration(
        temperature=float(inner.get("temperature", 1.0)),
        n=fitted.n,
        nll_before=fitted.nll_before,
        nll_after=fitted.nll_after,
        note=fitted.note,
        method="weights" if weights is not None and name == "none" else name,
        fitted=None if is_number else data,
        weights=weights,
    )


def apply_calibration(calibration: Calibration, pooled_log_probs: Float[Tensor, "N *two K"]) -> Float[Tensor, "N K"]:
    """Return calibrated log p̄, float32."""
    with torch.inference_mode():
        if calibration.fitted is None:
            return apply_temperature(pooled_log_probs.double(), calibration.temperature).float()
        return from_json(calibration.fitted).calibrator.apply(pooled_log_probs).float()
