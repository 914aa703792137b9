"""Calibrators by name: fit one, choose one by cross-validation, and cross-fit predictions.

Predictions are log p̄ [N, K], or [N, 2, K] of a model with raw and smoothed heads. Of the latter, the two weights of
`calibration.weighing` are fitted first; they take the place of a temperature, and other calibrators follow them.

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
    is_double,
    nll_per_image,
    plain,
    prepare,
)
from alloop.calibration.folds import draw_folds
from alloop.calibration.histogram import Histogram, fit_histogram
from alloop.calibration.isotonic import Isotonic, fit_isotonic
from alloop.calibration.platt import Platt, fit_platt
from alloop.calibration.temperature import FEWEST, UNIT, Temperature, fit_temperature
from alloop.calibration.weighing import (
    CAUTIOUS,
    Weighed,
    fit_weights,
    weigh,
)
from alloop.composition import CALIBRATORS, CalibratorRule

Fit = Callable[[Tensor, Tensor], tuple[Calibrator, str]]

N_FOLDS = 5
UNCHANGED = Unchanged()
_MARGIN = 2.0  # standard errors


def _quiet(fit: Callable[[Tensor, Tensor], Calibrator]) -> Fit:
    return lambda log_probs, targets: (fit(log_probs, targets), "")


_FITS: Mapping[str, Fit] = {  # in the order of `composition.CALIBRATORS`
    "none": _quiet(lambda *_: UNCHANGED),
    "temperature": fit_temperature,
    "platt": _quiet(fit_platt),
    "histogram-mass": _quiet(lambda lp, y: fit_histogram(lp, y, "mass")),
    "histogram-width": _quiet(lambda lp, y: fit_histogram(lp, y, "width")),
    "isotonic": _quiet(lambda lp, y: fit_isotonic(lp, y, fewest=1)),
}
_UNFITTED: Mapping[str, Calibrator] = {"temperature": UNIT}  # with too few images; others: Unchanged
_KINDS: Mapping[str, type[Any]] = {
    kind.name: kind for kind in (Unchanged, Temperature, Platt, Histogram, Isotonic, Weighed)
}


def smallest_sample(name: str, n_classes: int = 2, *, is_auto: bool = False) -> int:
    """Return the number of images that a calibrator needs: when asked for by name, or before `auto` considers it."""
    rule = CALIBRATORS[name]
    return max(rule.considered, rule.considered_per_class * n_classes) if is_auto else rule.smallest


def fit_calibrator(
    name: str, log_probs: Float[Tensor, "N *two K"], targets: Int[Tensor, "N"], seed: int = 0, n_folds: int = N_FOLDS
) -> FittedCalibrator:
    """Fit a calibrator to held-out predictions, with the evidence for it.

    Args:
        name: Name in `composition.CALIBRATORS`; "auto" uses `choose_calibrator`.
        log_probs: Pooled predictions: log p̄ [N, K], not a member's; or [N, 2, K] of raw and smoothed heads.
        targets: Class positions [N].
        seed: Seed of the folds of "auto".
        n_folds: Number of folds of "auto".

    Raises:
        ValueError: The calibrator is unknown, a row is not finite, or the targets do not fit.
    """
    prepared, labels = prepare(log_probs), check_targets(log_probs, targets)
    rule, note = _find_rule(name), ""
    if len(labels) < rule.smallest:
        calibrator, note = _fit_too_few(name, prepared, labels)
        return describe(calibrator, prepared, labels, note)
    if rule.chooses:
        name, note = choose_calibrator(prepared, labels, seed, n_folds)
    calibrator, remark = _fit(name, prepared, labels)
    return describe(calibrator, prepared, labels, _joined(note, remark))


def cross_fit(
    name: str, log_probs: Float[Tensor, "N *two K"], targets: Int[Tensor, "N"], seed: int, n_folds: int = N_FOLDS
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
    if name == "none" or len(labels) < smallest_sample(name):
        fixed = fitted.calibrator.apply(prepared) if is_double(prepared) else prepared
        return fixed.float(), fitted
    candidates = _candidates(prepared.shape[0], prepared.shape[-1]) if chooses else (name,)
    calibrated = torch.empty_like(plain(prepared))
    for rest, fold in draw_folds(labels.numpy(), seed, n_folds):
        calibrated[fold] = _fit_best(candidates, prepared[rest], labels[rest], seed, n_folds).apply(prepared[fold])
    return calibrated.float(), fitted


def choose_calibrator(
    log_probs: Float[Tensor, "N *two K"], targets: Int[Tensor, "N"], seed: int, n_folds: int = N_FOLDS
) -> tuple[str, str]:
    """Return the calibrator with the lowest cross-validated NLL among those with enough images, and the reason.

    A more flexible calibrator must beat temperature scaling by more than two standard errors of the difference between
    their NLLs on the same images.
    """
    n, n_classes = log_probs.shape[0], log_probs.shape[-1]
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
        "calibrator": _numbers(calibrator),
        "class_counts": list(fitted.class_counts),
    }


def from_json(data: Mapping[str, Any]) -> FittedCalibrator:
    """Read the result of `to_json`.

    Raises:
        ValueError: This alloop does not know the calibrator.
    """
    calibrator = _from_numbers(data["calibrator"])
    return FittedCalibrator(**{**data, "calibrator": calibrator, "class_counts": tuple(data["class_counts"])})


def _numbers(calibrator: Any) -> dict[str, Any]:
    values = {field.name: getattr(calibrator, field.name) for field in dataclasses.fields(calibrator)}
    nested = {key: _numbers(value) for key, value in values.items() if dataclasses.is_dataclass(value)}
    return {"name": calibrator.name, **values, **nested}


def _from_numbers(data: Mapping[str, Any]) -> Any:
    numbers = dict(data)
    name = numbers.pop("name")
    if name not in _KINDS:
        raise ValueError(f"there is no calibrator '{name}'")
    nested = {key: _from_numbers(value) for key, value in numbers.items() if isinstance(value, Mapping)}
    return _KINDS[name](**{key: _tuples(value) for key, value in numbers.items()} | nested)


def _candidates(n: int, n_classes: int) -> tuple[str, ...]:
    return tuple(name for name in _FITS if n >= smallest_sample(name, n_classes, is_auto=True))


def _fit_best(candidates: Sequence[str], log_probs: Tensor, targets: Tensor, seed: int, n_folds: int) -> Calibrator:
    if len(candidates) == 1:
        return _fit(candidates[0], log_probs, targets)[0]
    best = _best(_cross_validate(candidates, log_probs, targets, seed, n_folds))
    return _fit(best, log_probs, targets)[0]


def _cross_validate(
    candidates: Sequence[str], log_probs: Tensor, targets: Tensor, seed: int, n_folds: int
) -> dict[str, Tensor]:
    """Return each candidate's NLL per image [N], fitted without the image's fold."""
    losses = {name: torch.empty(len(targets), dtype=torch.float64) for name in candidates}
    for rest, fold in draw_folds(targets.numpy(), seed, n_folds):
        for name in candidates:
            calibrator, _ = _fit(name, log_probs[rest], targets[rest])
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


def _fit(name: str, log_probs: Tensor, targets: Tensor) -> tuple[Calibrator, str]:
    """Fit one calibrator by name. Of raw and smoothed heads, the weights come first."""
    if not is_double(log_probs):
        return _FITS[name](log_probs, targets)
    if name == "none":
        return Weighed(0.0, 1.0, UNCHANGED), ""
    raw, smoothed = fit_weights(log_probs, targets)
    if name == "temperature":  # the sum of the weights is 1 / T already
        return Weighed(raw, smoothed, UNCHANGED), ""
    then, note = _FITS[name](weigh(log_probs, raw, smoothed), targets)
    return Weighed(raw, smoothed, then), note


def _fit_too_few(name: str, log_probs: Tensor, targets: Tensor) -> tuple[Calibrator, str]:
    """Return the calibrator for a holdout that is too small for the named one, and the reason."""
    rule, n = _find_rule(name), len(targets)
    what = "a calibrator" if rule.chooses else rule.title or name
    if not is_double(log_probs):
        return _UNFITTED.get(name, UNCHANGED), _too_few(what, rule.unfitted, n, rule.smallest)
    if n >= FEWEST:
        weights = fit_weights(log_probs, targets)
        return Weighed(*weights, UNCHANGED), _too_few(
            what, "only the weights of the heads are fitted", n, rule.smallest
        )
    alone = f"smoothed heads alone, T = {CAUTIOUS:g}"
    return Weighed(0.0, 1 / CAUTIOUS, UNCHANGED), _too_few(what, alone, n, rule.smallest)


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _too_few(what: str, end: str, n: int, least: int) -> str:
    return f"{n} holdout labels are too few to fit {what} (fewer than {least}); {end}."


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
