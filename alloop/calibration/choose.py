"""Calibrators by name: fit one, choose one by cross-validation, and cross-fit predictions.

With too few images a fit does not fail: predictions stay as they are, and the note gives the reason.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.calibration.calibrator import (
    Calibrator,
    FittedCalibrator,
    Unchanged,
    check_targets,
    describe,
    nll_per_image,
    prepare,
)
from alloop.calibration.folds import draw_folds
from alloop.calibration.histogram import Histogram, fit_histogram
from alloop.calibration.isotonic import Isotonic, fit_isotonic
from alloop.calibration.platt import Platt, fit_platt
from alloop.calibration.temperature import FEWEST, UNIT, Temperature, fit_temperature
from alloop.composition import CALIBRATORS, CalibratorRule

Fit = Callable[[Tensor, Tensor], tuple[Calibrator, str]]

N_FOLDS = 5
_MARGIN = 2.0  # standard errors


def _quiet(fit: Callable[[Tensor, Tensor], Calibrator]) -> Fit:
    return lambda log_probs, targets: (fit(log_probs, targets), "")


_FITS: Mapping[str, Fit] = {  # in the order of `composition.CALIBRATORS`
    "none": _quiet(lambda *_: Unchanged()),
    "temperature": fit_temperature,
    "platt": _quiet(fit_platt),
    "histogram-mass": _quiet(lambda lp, y: fit_histogram(lp, y, "mass")),
    "histogram-width": _quiet(lambda lp, y: fit_histogram(lp, y, "width")),
    "isotonic": _quiet(lambda lp, y: fit_isotonic(lp, y, fewest=1)),
}
_UNFITTED: Mapping[str, Calibrator] = {"temperature": UNIT}  # with too few images; others: Unchanged
_KINDS: Mapping[str, type[Any]] = {kind.name: kind for kind in (Unchanged, Temperature, Platt, Histogram, Isotonic)}


def smallest_sample(name: str, n_classes: int = 2, *, is_auto: bool = False) -> int:
    """Return the number of images that a calibrator needs: when asked for by name, or before `auto` considers it."""
    rule = CALIBRATORS[name]
    return max(rule.considered, rule.considered_per_class * n_classes) if is_auto else rule.smallest


def fit_calibrator(
    name: str, log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"], seed: int = 0, n_folds: int = N_FOLDS
) -> FittedCalibrator:
    """Fit a calibrator to held-out predictions, with the evidence for it.

    Args:
        name: Name in `composition.CALIBRATORS`; "auto" uses `choose_calibrator`.
        log_probs: Pooled predictions: log p̄, not a member's.
        targets: Class positions [N].
        seed: Seed of the folds of "auto".
        n_folds: Number of folds of "auto".

    Raises:
        ValueError: The calibrator is unknown, a row is not finite, or the targets do not fit.
    """
    prepared, labels = prepare(log_probs), check_targets(log_probs, targets)
    if _find_rule(name).chooses:
        name, note = choose_calibrator(prepared, labels, seed, n_folds)
    else:
        note = _why_not(name, len(labels))
        if note:
            return describe(_UNFITTED.get(name, Unchanged()), prepared, labels, note)
    calibrator, remark = _FITS[name](prepared, labels)
    return describe(calibrator, prepared, labels, " ".join(part for part in (note, remark) if part))


def cross_fit(
    name: str, log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"], seed: int, n_folds: int = N_FOLDS
) -> tuple[Float[Tensor, "N K"], FittedCalibrator]:
    """Return cross-fitted log-probabilities, and the calibrator fitted to all images.

    Each image gets the calibrator of the other folds, so no image calibrates itself. "auto" chooses separately for each
    fold, so that its choice is out of sample, too. With too few images, predictions stay as they are.

    Args:
        name: As in `composition.CALIBRATORS`.
        log_probs: Pooled, uncalibrated.
        targets: Class positions [N].
        seed: Seed of the folds.
        n_folds: Number of folds, at least 2.

    Returns:
        Log-probabilities [N, K] in float32, and the calibrator for scoring.
    """
    fitted = fit_calibrator(name, log_probs, targets, seed, n_folds)
    prepared, labels = prepare(log_probs), check_targets(log_probs, targets)
    chooses = _find_rule(name).chooses
    if len(labels) < smallest_sample(name) or (not chooses and isinstance(fitted.calibrator, Unchanged)):
        return prepared.float(), fitted
    candidates = _candidates(*prepared.shape) if chooses else (name,)
    calibrated = prepared.clone()
    for rest, fold in draw_folds(labels.numpy(), seed, n_folds):
        calibrated[fold] = _fit_best(candidates, prepared[rest], labels[rest], seed, n_folds).apply(prepared[fold])
    return calibrated.float(), fitted


def choose_calibrator(
    log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"], seed: int, n_folds: int = N_FOLDS
) -> tuple[str, str]:
    """Return the calibrator with the lowest cross-validated NLL among those with enough images, and the reason.

    A more flexible calibrator must beat temperature scaling by more than two standard errors of the difference between
    their NLLs on the same images.
    """
    n, n_classes = log_probs.shape
    if n < FEWEST:
        return "none", _too_few("a calibrator", CALIBRATORS["none"].unfitted, n, FEWEST)
    candidates = _candidates(n, n_classes)
    losses = _cross_validate(candidates, prepare(log_probs), targets, seed, n_folds)
    best = _best(losses)
    shown = ", ".join(f"{name} {float(loss.mean()):.4f}" for name, loss in losses.items())
    left_out = [name for name in _FITS if name not in candidates]
    note = f"Chose {best} by {n_folds}-fold NLL on {n} images: {shown}."
    if left_out:
        note += f" Not considered with {n} images of {n_classes} classes: {', '.join(left_out)}."
    return best, note


def to_json(fitted: FittedCalibrator) -> dict[str, Any]:
    """Convert to plain numbers, strings and lists. `from_json` is the reverse."""
    whole = {field.name: getattr(fitted, field.name) for field in dataclasses.fields(fitted)}
    calibrator: Any = fitted.calibrator
    return whole | {
        "calibrator": {"name": calibrator.name, **dataclasses.asdict(calibrator)},
        "class_counts": list(fitted.class_counts),
    }


def from_json(data: Mapping[str, Any]) -> FittedCalibrator:
    """Read the result of `to_json`.

    Raises:
        ValueError: This alloop does not know the calibrator.
    """
    numbers = dict(data["calibrator"])
    kind = _KINDS.get(numbers.pop("name"))
    if kind is None:
        raise ValueError(f"there is no calibrator '{data['calibrator']['name']}'")
    calibrator = kind(**{key: _tuples(value) for key, value in numbers.items()})
    return FittedCalibrator(**{**data, "calibrator": calibrator, "class_counts": tuple(data["class_counts"])})


def _candidates(n: int, n_classes: int) -> tuple[str, ...]:
    return tuple(name for name in _FITS if n >= smallest_sample(name, n_classes, is_auto=True))


def _fit_best(candidates: Sequence[str], log_probs: Tensor, targets: Tensor, seed: int, n_folds: int) -> Calibrator:
    if len(candidates) == 1:
        return _FITS[candidates[0]](log_probs, targets)[0]
    best = _best(_cross_validate(candidates, log_probs, targets, seed, n_folds))
    return _FITS[best](log_probs, targets)[0]


def _cross_validate(
    candidates: Sequence[str], log_probs: Tensor, targets: Tensor, seed: int, n_folds: int
) -> dict[str, Tensor]:
    """Return each candidate's NLL per image [N], fitted without the image's fold."""
    losses = {name: torch.empty(len(targets), dtype=torch.float64) for name in candidates}
    for rest, fold in draw_folds(targets.numpy(), seed, n_folds):
        for name in candidates:
            calibrator, _ = _FITS[name](log_probs[rest], targets[rest])
            losses[name][fold] = nll_per_image(calibrator.apply(log_probs[fold]), targets[fold])
    return losses


def _best(losses: Mapping[str, Tensor]) -> str:
    simple = min(
        (name for name in losses if not CALIBRATORS[name].is_flexible), key=lambda name: float(losses[name].mean())
    )
    better = {}
    for name in losses:
        difference = losses[simple] - losses[name]
        error = float(difference.std()) / math.sqrt(len(difference))
        if CALIBRATORS[name].is_flexible and float(difference.mean()) > _MARGIN * error:
            better[name] = float(losses[name].mean())
    return min(better, key=better.__getitem__) if better else simple


def _find_rule(name: str) -> CalibratorRule:
    if name not in CALIBRATORS:
        raise ValueError(f"there is no calibrator '{name}'; there are: {', '.join(CALIBRATORS)}")
    return CALIBRATORS[name]


def _why_not(name: str, n: int) -> str:
    rule = _find_rule(name)
    return _too_few(rule.title or name, rule.unfitted, n, rule.smallest) if n < rule.smallest else ""


def _too_few(what: str, end: str, n: int, least: int) -> str:
    return f"{n} holdout labels are too few to fit {what} (fewer than {least}); {end}."


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
