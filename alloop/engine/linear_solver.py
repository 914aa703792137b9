"""Minimize a smooth loss of linear heads by L-BFGS that reads the features only twice in a step.

Logits are linear in the weights. Along a direction, loss and slope therefore need the logits of the direction once, and
no features: a line search costs hardly anything. The first guess of the curvature is the features' own covariance, so
directions of little variance converge as fast as the others, and a solution takes about 30 steps.

Source: Nocedal & Wright, "Numerical Optimization", 2nd edition: algorithms 7.4 (two-loop recursion) and 3.5 (Wolfe).
"""

import collections
import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.engine.objective import Objective
from alloop.losses.cross_entropy import Targets
from alloop.losses.multi_head import multi_head_slopes

_HISTORY = 10  # steps that L-BFGS remembers
_ENOUGH = 1e-9  # expected gain of a step, as a share of the loss, below which the solution is found
_TRIALS = 30  # of a line search
_DECREASE, _FLATTER = 1e-4, 0.9  # of the Wolfe conditions
_NOISE = 1e-9  # share of the loss by which rounding may raise it
_STEEPNESS = (
    0.1  # curvature at the solution, as a share of the mean slope of equal logits: most images are then certain
)

_Steps = collections.deque[tuple[Tensor, Tensor, float]]  # (step, change of the gradient, 1 / their product)


@dataclasses.dataclass(frozen=True)
class LinearProblem:
    """Loss of M linear heads on N images, plus weight decay, plus the loss of imaginary images at the center.

    The weights are θ [M K, R + 1]; the last column is the bias.

    Attributes:
        rows: Centered features, and a last column of ones.
        targets: Labels or soft targets of the images.
        objective: A smooth loss.
        n_heads, n_classes: Numbers M and K.
        decay: Factor of half the squared weights. The bias does not decay.
        prior: Number of imaginary images, as a share of N. They belong to every class alike.
    """

    rows: Float[Tensor, "N R1"]
    targets: Targets
    objective: Objective
    n_heads: int
    n_classes: int
    decay: float
    prior: float

    def logits(self, theta: Float[Tensor, "MK R1"]) -> Float[Tensor, "M N1 K"]:
        """Return the logits of all images, then those of the center, float64."""
        rows = torch.cat([self.rows @ theta.T, theta[:, -1:].T])
        return rows.reshape(-1, self.n_heads, self.n_classes).transpose(0, 1).double().contiguous()

    def slopes(self, logits: Float[Tensor, "M N1 K"]) -> tuple[float, Float[Tensor, "M N1 K"]]:
        """Return the loss without decay, and its slope by every logit."""
        objective = self.objective
        value, slopes = objective.slopes(logits[:, :-1], self.targets)
        even = torch.full((1, self.n_classes), 1 / self.n_classes, dtype=logits.dtype, device=logits.device)
        more, at_center = multi_head_slopes(
            logits[:, -1:], even, objective.head_weights, loss_scale=objective.loss_scale
        )
        return (value + self.prior * more).item(), torch.cat([slopes, self.prior * at_center], dim=1)

    def gradient(self, slopes: Float[Tensor, "M N1 K"], theta: Float[Tensor, "MK R1"]) -> Float[Tensor, "MK R1"]:
        """Return the gradient by θ for the slopes by the logits."""
        flat = slopes.transpose(0, 1).flatten(1).to(theta.dtype)
        gradient = flat[:-1].T @ self.rows
        gradient[:, :-1] += self.decay * theta[:, :-1]
        gradient[:, -1] += flat[-1]
        return gradient

    def steepness(self) -> float:
        """Return about the mean curvature by a logit at the solution, as a power of 2.

        It depends on neither weights nor features, so that similar problems can share one guess of the curvature.
        """
        n = len(self.rows)
        zeros = torch.zeros(self.n_heads, n + 1, self.n_classes, dtype=torch.float64, device=self.rows.device)
        mean = n * self.slopes(zeros)[1][:, :-1].abs().mean().item()
        return 2.0 ** round(math.log2(_STEEPNESS * mean))


def invert_curvature(
    moment: Float[Tensor, "R1 R1"], steepness: float, decay: float, prior: float
) -> Float[Tensor, "R1 R1"]:
    """Return the inverse of about the Hessian of one class's weights.

    Args:
        moment: Mean of the products of the rows' columns.
        steepness: Result of `LinearProblem.steepness`.
        decay: As in the problem.
        prior: As in the problem.
    """
    hessian = steepness * moment.double()
    least = 1e-6 * steepness  # without decay, directions without variance have no curvature
    hessian.diagonal().add_(max(decay, least))
    hessian[-1, -1] += steepness * prior
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian)).to(moment.dtype)


@dataclasses.dataclass(frozen=True)
class _Point:
    """Weights θ with their logits, their loss, and its slopes by the logits."""

    theta: Tensor
    logits: Tensor
    value: float
    slopes: Tensor


def minimize(
    problem: LinearProblem, theta: Float[Tensor, "MK R1"], inverse: Float[Tensor, "R1 R1"], steps: int
) -> tuple[Float[Tensor, "MK R1"], dict[str, object]]:
    """Return the best θ after at most `steps` steps from a first one, and a JSON-able record.

    Args:
        problem: Problem to solve.
        theta: Weights to start from.
        inverse: Result of `invert_curvature` for this problem or a similar one.
        steps: Largest number of steps.
    """
    start = point = _point(problem, theta, problem.logits(theta))
    gradient = problem.gradient(point.slopes, theta)
    known: _Steps = collections.deque(maxlen=_HISTORY)
    evaluations = 1
    for _ in range(steps):
        direction = -_newton_step(gradient, known, inverse)
        slope = _dot(gradient, direction)
        if not -slope > _ENOUGH * abs(point.value):
            break
        found, trials = _search(problem, point, direction, slope)
        evaluations += trials
        if found is None:
            break
        change = problem.gradient(found.slopes, found.theta) - gradient
        step = found.theta - point.theta
        if (product := _dot(step, change)) > 0:
            known.append((step, change, 1 / product))
        point, gradient = found, gradient + change
    return point.theta, {"evaluations": evaluations, "loss_before": start.value, "loss_after": point.value}


def _point(problem: LinearProblem, theta: Tensor, logits: Tensor) -> _Point:
    value, slopes = problem.slopes(logits)
    weights = theta[:, :-1].double()
    return _Point(theta, logits, value + 0.5 * problem.decay * weights.square().sum().item(), slopes)


def _newton_step(gradient: Tensor, known: _Steps, inverse: Tensor) -> Tensor:
    """Return L-BFGS's product of inverse Hessian and gradient."""
    rest, factors = gradient, []
    for step, change, share in reversed(known):
        factors.append(share * _dot(step, rest))
        rest = rest - factors[-1] * change
    result = rest @ inverse
    if known:
        _, change, share = known[-1]
        result = result / (share * _dot(change, change @ inverse))
    for (step, change, share), factor in zip(known, reversed(factors), strict=True):
        result = result + (factor - share * _dot(change, result)) * step
    return result


def _search(problem: LinearProblem, start: _Point, direction: Tensor, slope: float) -> tuple[_Point | None, int]:
    """Return a point along the direction that meets the Wolfe conditions, and the number of points tried.

    None if rounding hides every decrease.
    """
    ahead = problem.logits(direction)
    low, high, length = 0.0, math.inf, 1.0
    for trial in range(1, _TRIALS + 1):
        point = _point(problem, start.theta + length * direction, start.logits + length * ahead)
        along = (point.slopes * ahead).sum().item() + problem.decay * _dot(point.theta[:, :-1], direction[:, :-1])
        if not point.value <= start.value + _DECREASE * length * slope + _NOISE * abs(start.value):
            high = length
        elif along < _FLATTER * slope:
            low = length
        else:
            return point, trial
        length = 2 * low if high == math.inf else (low + high) / 2
    return None, _TRIALS


def _dot(one: Tensor, other: Tensor) -> float:
    return (one * other).sum(dtype=torch.float64).item()
