"""Fits the calibrator to the training labels, where all others are a test set that only measures."""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.calibration.folds import draw_folds
from alloop.calibration.temperature import FEWEST
from alloop.engine.calibrate import calibrate
from alloop.records import Calibration

N_FOLDS = 5


def out_of_fold(targets: Tensor, seed: int, predict: Callable[[Tensor, Tensor], Tensor], n_classes: int) -> Tensor:
    """Log p̄ [N, K] of labeled images, each predicted by a model of the other folds.

    Args:
        targets: [N], at least as many as folds.
        seed: Draws the folds.
        predict: (positions to train on, positions to predict) → log p̄ [n, K] of the latter.
        n_classes: K.
    """
    rows = torch.full((len(targets), n_classes), torch.nan, dtype=torch.float64)
    for rest, fold in draw_folds(targets.numpy(), seed, N_FOLDS):
        rows[fold] = predict(rest, fold).double()
    return rows


def rotate(features: Float[Tensor, "N D"]) -> Float[Tensor, "N R"]:
    """The same images in no more dimensions than there are of them: all distances and inner products stay.

    Linear heads with squared-norm decay do not see a rotation, and what lies outside the span of their images decays to
    nothing: what they say of these images stays the same. Features that are few already stay as they are.
    """
    n, n_features = features.shape
    if n >= n_features:
        return features
    # Of the transpose: Q [D, N] spans the rows, and R is what each row is in it.
    turned: Tensor = torch.linalg.qr(features.double().T, mode="r").R.T
    return turned.float()


def calibrate_apart(
    method: str, n_labels: int, seed: int, cross_validate: Callable[[], tuple[Tensor, Tensor]] | None
) -> Calibration:
    """Fit the calibrator for scoring without the test set.

    The models of the folds saw a fifth fewer labels than the one that is kept, and are a little less sure and less
    right than it is; what they are fitted to is at least never an image that they were trained on.

    Args:
        method: `[calibration] method`.
        n_labels: Training labels; below 50 everything stays as it is.
        seed: Seed of folds within the fit.
        cross_validate: Gives out-of-fold log p̄ [N, K] and targets [N]; called only where it is needed. None: cannot be
            had, since the whole network is trained.
    """
    if method == "none":
        return Calibration(1.0, 0, None, None, method="none")
    if cross_validate is None:
        note = (
            "Not calibrated: the holdout is a test set, and fine-tuning a network for every fold would take too long."
        )
        return Calibration(1.0, 0, None, None, note, method="none")
    if n_labels < FEWEST:
        note = f"{n_labels} training labels are too few to cross-validate a calibrator (fewer than {FEWEST}); T = 1."
        return Calibration(1.0, 0, None, None, note)
    pooled_log_probs, targets = cross_validate()
    _, fitted = calibrate(method, pooled_log_probs, targets, seed)
    note = f"Fitted by {N_FOLDS}-fold cross-validation on {len(targets)} training labels: the holdout is a test set."
    said = fitted.note.replace("holdout ", "out-of-fold ")
    return dataclasses.replace(fitted, note=f"{note} {said}".strip())
