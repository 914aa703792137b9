"""Predictions of training images by models that did not learn their labels: for a calibrator, and for second looks."""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.calibration.folds import draw_folds
from alloop.calibration.temperature import FEWEST
from alloop.engine.calibrate import apply_calibration, calibrate, calibrate_by_training_labels
from alloop.engine.fit_heads import HeadFits
from alloop.models.heads import MultiHead
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


def predict_unlearned(fits: HeadFits, heads: MultiHead, decay: float, seed: int) -> Float[Tensor, "N K"] | None:
    """Return log-probabilities of the training images, each by a head that learned the other folds only, float32.

    Every fold has one plain head. It starts at the mean of the model's heads and takes a few steps, which is enough to
    forget the labels of the fold and costs little (benchmarks/second_looks). Then one temperature is fitted to all
    images. Their labels are no random sample, so the probabilities are good enough to find doubtful labels, and are no
    measurement.

    Args:
        fits: Fits to the features and labels of the training images.
        heads: Heads of the model on these features.
        decay: Weight decay of the heads.
        seed: Seed for the folds.

    Returns:
        None if there are fewer than 50 labels.
    """
    targets = fits.targets.cpu()
    if len(targets) < FEWEST:
        return None
    folds = draw_folds(targets.numpy(), seed, N_FOLDS)
    log_probs = fits.predict_folds(folds, heads, decay)
    return apply_calibration(calibrate_by_training_labels("temperature", log_probs, targets, seed), log_probs)
