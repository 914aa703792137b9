"""Calibration by cross-validation on the training labels, for workspaces whose holdout is a test set."""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.calibration.folds import draw_folds
from alloop.calibration.temperature import FEWEST
from alloop.engine.calibrate import calibrate, calibrate_by_training_labels
from alloop.records import Calibration

N_FOLDS = 5


def out_of_fold(targets: Tensor, seed: int, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return log p̄ [N, K] of labeled images, each predicted by a model that was trained on the other folds.

    Args:
        targets: Classes [N]. There are at least as many images as folds.
        seed: Seed for the folds.
        predict: Function (positions to train on, positions to predict) → log p̄ [n, K] of the latter, or [n, 2, K] by
            raw and smoothed heads.
    """
    parts = [(fold, predict(rest, fold).double()) for rest, fold in draw_folds(targets.numpy(), seed, N_FOLDS)]
    rows = torch.full((len(targets), *parts[0][1].shape[1:]), torch.nan, dtype=torch.float64)
    for fold, predicted in parts:
        rows[fold] = predicted
    return rows


def calibrate_apart(
    method: str,
    n_labels: int,
    seed: int,
    cross_validate: Callable[[], tuple[Tensor, Tensor]] | None,
    nothing: Float[Tensor, "0 *two K"],
) -> Calibration:
    """Fit a calibrator for scoring without the test set.

    The models of the folds saw a fifth fewer labels than the model that is kept, so they are slightly less confident
    and less accurate. In return, no image was predicted by a model that was trained on it.

    Args:
        method: `[calibration] method`.
        n_labels: Number of training labels. Below 50 nothing is fitted.
        seed: Seed for the folds within the fit.
        cross_validate: Function that gives out-of-fold log p̄ [N, K], or [N, 2, K] by raw and smoothed heads, and
            targets [N], called only if needed. None if the whole network is trained, because training it for every fold
            would take too long.
        nothing: Predictions of no images, in the shape that the model predicts.
    """
    no_targets = torch.empty(0, dtype=torch.long)
    if method == "none":
        return calibrate(method, nothing, no_targets, seed)[1]
    if cross_validate is None:
        note = (
            "Not calibrated: the holdout is a test set, and fine-tuning a network for every fold would take too long."
        )
        return Calibration(1.0, 0, None, None, note, method="none")
    if n_labels < FEWEST:
        fixed = calibrate(method, nothing, no_targets, seed)[1]
        what = f"{n_labels} training labels are too few to cross-validate a calibrator (fewer than {FEWEST})"
        return dataclasses.replace(fixed, note=f"{what};{fixed.note.rpartition(';')[2]}")
    pooled_log_probs, targets = cross_validate()
    fitted = calibrate_by_training_labels(method, pooled_log_probs, targets, seed)
    note = f"Fitted by {N_FOLDS}-fold cross-validation on {len(targets)} training labels: the holdout is a test set."
    said = fitted.note.replace("holdout ", "out-of-fold ")
    return dataclasses.replace(fitted, note=f"{note} {said}".strip())
