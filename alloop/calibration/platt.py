"""Platt scaling: a logistic curve of each class's log-odds, normalized over the classes.

Source: Platt (1999), "Probabilistic outputs for support vector machines"; docs/methods.md section 7.2.
"""

import dataclasses
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.calibration.calibrator import check_targets, prepare

Array = npt.NDArray[np.float64]

FARTHEST = 1e4  # limit of log-odds; beyond it a class is certain
_STEPS = 200
_TINY = 1e-10  # relative size of a Newton step at which the solution has converged
_RIDGE = 1e-12  # keeps the Hessian of a constant score invertible


@dataclasses.dataclass(frozen=True, slots=True)
class Platt:
    """Probabilities P_k = 1 / (1 + exp(A_k s_k + B_k)) of log-odds s_k, divided by their sum.

    With two classes there is one curve, for class 1 over log p_1 - log p_0.

    Attributes:
        slopes: A of each curve; negative if a higher score means more often right.
        intercepts: B of each curve.
    """

    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    name: ClassVar[str] = "platt"

    def apply(self, log_probs: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return calibrated log-probabilities. The top class may change."""
        prepared = prepare(log_probs)
        odds = _odds(prepared)
        negative = odds * torch.tensor(self.slopes, dtype=torch.float64) + torch.tensor(
            self.intercepts, dtype=torch.float64
        )
        if prepared.shape[1] == 2:
            negative = torch.cat([-negative, negative], dim=1)
        # In log space: no row can be all zero.
        return torch.nn.functional.logsigmoid(-negative).log_softmax(dim=-1)


def fit_platt(log_probs: Float[Tensor, "N K"], targets: Int[Tensor, "N"], *, is_smoothed: bool = True) -> Platt:
    """Fit one logistic curve per class (a single one for two classes) by maximum likelihood.

    Args:
        log_probs: Held-out predictions.
        targets: Class positions.
        is_smoothed: True to fit to (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2) instead of 1 and 0. The curve is then finite
            even if the scores separate the classes.

    Raises:
        ValueError: There are no images, or, without smoothing, the scores separate a class.
    """
    labels = check_targets(log_probs, targets).numpy()
    odds = _odds(prepare(log_probs)).numpy()
    classes = range(odds.shape[1]) if odds.shape[1] > 1 else (1,)
    curves = [
        fit_logistic(column, (labels == k).astype(np.float64), is_smoothed=is_smoothed)
        for k, column in zip(classes, odds.T, strict=True)
    ]
    return Platt(tuple(slope for slope, _ in curves), tuple(intercept for _, intercept in curves))


def fit_logistic(scores: Array, labels: Array, *, is_smoothed: bool = True) -> tuple[float, float]:
    """Fit A and B of 1 / (1 + exp(A s + B)) by Newton's method with backtracking, as in Lin, Lin & Weng (2007).

    Args:
        scores: Finite scores [N].
        labels: Labels [N], 0 or 1.
        is_smoothed: As in `fit_platt`.

    Raises:
        ValueError: There are no images, or there is no finite optimum.
    """
    if not len(scores):
        raise ValueError("Platt scaling needs images to be fitted to")
    n_yes = labels.sum()
    high, low = ((n_yes + 1) / (n_yes + 2), 1 / (len(labels) - n_yes + 2)) if is_smoothed else (1.0, 0.0)
    share = np.where(labels > 0, high, low)
    # Newton in centered, scaled scores; scores of ±1e4 would spoil the Hessian.
    center, spread = scores.mean(), scores.std() or 1.0
    design = np.stack([(scores - center) / spread, np.ones_like(scores)], axis=1)
    weights = np.array([0.0, np.log((n_yes + 1) / (len(labels) - n_yes + 1))])
    for _ in range(_STEPS):
        step = _newton_step(design, share, weights)
        weights = weights + step
        if np.abs(step).max() <= _TINY * max(1.0, np.abs(weights).max()):
            slope = weights[0] / spread
            return float(-slope), float(-(weights[1] - slope * center))
    raise ValueError("Platt scaling found no finite curve: the scores separate the classes; fit smoothed targets")


def _newton_step(design: Array, share: Array, weights: Array) -> Array:
    """Return a step that does not raise the loss."""
    probs = _sigmoid(design @ weights)
    gradient = design.T @ (probs - share)
    hessian = (design * (probs * (1 - probs))[:, None]).T @ design + _RIDGE * np.eye(2)
    step: Array = np.asarray(-np.linalg.solve(hessian, gradient), dtype=np.float64)
    before = _loss(design @ weights, share)
    while _loss(design @ (weights + step), share) > before * (1 + 1e-14) and np.abs(step).max() > 1e-14:
        step = step / 2
    return step


def _loss(odds: Array, share: Array) -> float:
    return float((np.logaddexp(0, odds) - share * odds).sum())


def _sigmoid(odds: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -odds)))


def _odds(log_probs: Tensor) -> Tensor:
    """Return the log-odds log p_k - log(1 - p_k) [N, K]; for two classes those of class 1 [N, 1]."""
    if log_probs.shape[1] == 2:
        return (log_probs[:, 1:] - log_probs[:, :1]).clamp(-FARTHEST, FARTHEST)
    top = log_probs.argmax(dim=1, keepdim=True)
    # 1 - p of the top class may round to 0, so the other probabilities are summed.
    others = log_probs.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
    rest = torch.log1p(-log_probs.exp().clamp_max(0.5)).scatter(1, top, others)
    return (log_probs - rest).clamp(-FARTHEST, FARTHEST)
