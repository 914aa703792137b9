"""Fit heads to fixed features. The problem is small, so it is solved to convergence where the loss allows it."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.engine.build import HEAD_BATCH, HEAD_PRIOR, HEAD_RATE, HeadRecipe
from alloop.engine.device import full_float32
from alloop.engine.linear_solver import LinearProblem, invert_curvature, minimize
from alloop.engine.objective import Objective
from alloop.losses.cross_entropy import Targets
from alloop.losses.mixing import mix
from alloop.losses.multi_head import multi_head_loss
from alloop.losses.named import find_loss
from alloop.models.heads import MultiHead, standardize

_FEW = 2_000_000  # N * D up to which the CPU is as fast as a card
_FOLD_STEPS = 3  # of L-BFGS for a fold, from heads that were fitted to all images (benchmarks/second_looks)
_SMALL = (
    20_000_000  # N * D up to which one thread is used: a fit then takes seconds at most, and waiting on busy cores more
)


def choose_solver_device(features: Float[Tensor, "N D"], device: torch.device) -> torch.device:
    """Return the device for fits to these features: a CUDA device for large problems, else the CPU.

    A small fit takes less time than a card needs to start its many short operations. It is computed in one thread, so
    its result depends neither on the card nor on the number of cores.
    """
    return device if device.type == "cuda" and features.numel() > _FEW else torch.device("cpu")


def fit_heads(
    features: Float[Tensor, "N D"],
    targets: Targets,
    n_classes: int,
    n_heads: int,
    objective: Objective,
    recipe: HeadRecipe,
    generator: torch.Generator,
) -> tuple[MultiHead, dict[str, object]]:
    """Fit M heads to features once; see `HeadFits.fit`."""
    return HeadFits(features, targets, n_classes).fit(n_heads, objective, recipe, generator)


class HeadFits:
    """Fits of heads to the same features, or to parts of them, as the folds of a cross-validation are.

    All fits share one basis of the features and one guess of the curvature. The result of a fit does not depend on
    which fits were before it.
    """

    def __init__(self, features: Float[Tensor, "N D"], targets: Targets, n_classes: int) -> None:
        """The features' device computes the fits, in float32. Targets are labels, or predictions of another model."""
        self.features, self.targets, self.n_classes = features, targets, n_classes
        self._inverses: dict[tuple[float, float, float], Tensor] = {}

    def fit(
        self,
        n_heads: int,
        objective: Objective,
        recipe: HeadRecipe,
        generator: torch.Generator,
        part: Int[Tensor, "n"] | None = None,
        start: MultiHead | None = None,
    ) -> tuple[MultiHead, dict[str, object]]:
        """Fit M heads.

        The heads minimize the objective, plus weight decay, plus the cross-entropy of `recipe.prior` imaginary images
        at the center of the features, which belong to every class alike. LogitNorm has no such images, because the
        logits at the center cannot be normalized. Smooth losses are solved by L-BFGS with all labels at once. Other
        losses, mixed features and dropout go to Adam in mini-batches, which minimizes the same sum. benchmarks/recipe
        says how the numbers were found.

        Args:
            n_heads: Number of heads M.
            objective: Loss with its weights.
            recipe: Numbers of the fit.
            generator: Generator of the initial weights and of mini-batches.
            part: Positions of the images to fit to; None: all.
            start: Heads near the solution, as those fitted to all images are for a fold. They save half of the steps of
                L-BFGS, and Adam does not use them.

        Returns:
            The heads, and a JSON-able record of the fit.
        """
        features, targets = self.features, self.targets if part is None else self.targets[part]
        heads = MultiHead(features.shape[1], n_heads, self.n_classes, generator).to(features.device)
        objective = objective.to(features.device)
        with _threads_for(self.features), full_float32():
            if recipe.has_one_solution(objective.loss):
                history = self._solve(heads, targets, objective, recipe, part, start)
            else:
                features = features if part is None else features[part]
                heads.standardize_by(features)
                history = _descend(_Problem(heads, features, targets, objective, recipe), generator)
        heads.eval().requires_grad_(requires_grad=False)
        return heads, {"weight_decay": recipe.weight_decay, "prior": recipe.prior, **history}

    def predict_folds(
        self, folds: Sequence[tuple[Tensor, Tensor]], start: MultiHead, decay: float
    ) -> Float[Tensor, "N K"]:
        """Return log-probabilities of all images, each by one head that was fitted without the image's fold, float64.

        The head minimizes the cross-entropy, approximately: it takes a few steps from the mean of `start`. All folds
        share the standardization of the features, in which no label takes part.

        Args:
            folds: Positions (rest, fold) of each fold, which together hold every image once.
            start: Heads that were fitted to all images.
            decay: Weight decay.
        """
        rows, found = self._span.rows, torch.empty(len(self.features), self.n_classes, dtype=torch.float64)
        objective = Objective(find_loss(), None, None, "mean")
        with _threads_for(self.features), full_float32(), torch.no_grad():
            theta = self._span.to_theta(start.to(rows.device))
            theta = theta.view(start.n_heads, self.n_classes, -1).mean(dim=0)
            for rest, fold in folds:
                there, apart = rest.to(rows.device), fold.to(rows.device)
                labels, prior = self.targets[there], HEAD_PRIOR / len(rest)
                problem = LinearProblem(rows[there], labels, objective, 1, self.n_classes, decay, prior)
                fitted, _ = minimize(problem, theta, self._some_inverse(problem), _FOLD_STEPS)
                found[fold] = (rows[apart] @ fitted.T).double().log_softmax(dim=-1).cpu()
        return found

    def _solve(
        self,
        heads: MultiHead,
        targets: Tensor,
        objective: Objective,
        recipe: HeadRecipe,
        part: Tensor | None,
        start: MultiHead | None,
    ) -> dict[str, object]:
        span = self._span if part is None else self._span.take(part)
        span.standardize(heads)
        problem = LinearProblem(
            span.rows,
            targets,
            objective,
            heads.n_heads,
            self.n_classes,
            decay=recipe.weight_decay / heads.n_heads,
            prior=recipe.prior / len(targets),
        )
        theta = span.to_theta(heads if start is None else start)
        theta, history = minimize(problem, theta, self._inverse(problem, recipe), recipe.steps)
        span.write(theta, heads)
        return history

    @functools.cached_property
    def _span(self) -> "_Span":
        return _Span.of(self.features)

    def _inverse(self, problem: LinearProblem, recipe: HeadRecipe) -> Tensor:
        """Return the guess of the curvature by all images, also for a part of them."""
        return self._inverse_for((problem.steepness(), problem.decay, recipe.prior / len(self.features)))

    def _some_inverse(self, problem: LinearProblem) -> Tensor:
        """Return a guess of the curvature, if possible one that an earlier fit left: making one takes longest."""
        steepness = problem.steepness()
        if not self._inverses:
            return self._inverse_for((steepness, problem.decay, problem.prior))
        key, inverse = next(iter(self._inverses.items()))
        return inverse * (key[0] / steepness)

    def _inverse_for(self, key: tuple[float, float, float]) -> Tensor:
        if key not in self._inverses:
            rows = self._span.rows
            self._inverses[key] = invert_curvature(rows.T @ rows / len(rows), *key)
        return self._inverses[key]


@dataclasses.dataclass(frozen=True)
class _Span:
    """Standardized features in coordinates of no more dimensions than there are images.

    The part of a weight that is orthogonal to all images changes no logit and decays to 0, so the solution lies in the
    span of the images. A rotation within the span changes neither logits nor decay.

    Attributes:
        rows: Coordinates y, and a last column of ones: the features are center + scale * basis y.
        basis: Orthonormal basis; None if the coordinates are the standardized features themselves.
        center, scale: As in `MultiHead`, float64.
    """

    rows: Float[Tensor, "N R1"]
    basis: Float[Tensor, "D R"] | None
    center: Float[Tensor, "D"]
    scale: Float[Tensor, ""]

    @classmethod
    def of(cls, features: Float[Tensor, "N D"]) -> "_Span":
        rows, center, scale = standardize(features)
        if len(features) >= features.shape[1]:
            return cls(_with_ones(rows), None, center, scale)
        basis, coordinates = torch.linalg.qr(rows.T)  # [D, N] and [N, N]
        return cls(_with_ones(coordinates.T), basis, center, scale)

    def take(self, part: Int[Tensor, "n"]) -> "_Span":
        """Return the images at these positions, with a standardization of their own."""
        rows, center, scale = standardize(self.rows[part, :-1])
        moved = center if self.basis is None else self.basis @ center
        return _Span(_with_ones(rows), self.basis, self.center + self.scale * moved, self.scale * scale)

    def standardize(self, heads: MultiHead) -> None:
        """Give heads the standardization of these images."""
        heads.center.copy_(self.center)
        heads.scale.copy_(self.scale)

    def to_theta(self, heads: MultiHead) -> Float[Tensor, "MK R1"]:
        """Return the weights and biases that give these heads' logits, as far as they lie in the span."""
        with torch.no_grad():
            weight = heads.weight.to(self.center) / heads.scale.to(self.center)
            bias = heads.bias.to(self.center) + weight @ (self.center - heads.center.to(self.center))
            weight = self.scale * (weight if self.basis is None else weight @ self.basis)
            return torch.cat([weight, bias.unsqueeze(2)], dim=2).flatten(0, 1).float()

    def write(self, theta: Float[Tensor, "MK R1"], heads: MultiHead) -> None:
        """Give heads with this standardization these weights and biases."""
        weight = theta[:, :-1].double()
        with torch.no_grad():
            heads.weight.copy_((weight if self.basis is None else weight @ self.basis.T).view_as(heads.weight))
            heads.bias.copy_(theta[:, -1].view_as(heads.bias))


def _with_ones(rows: Float[Tensor, "N R"]) -> Float[Tensor, "N R1"]:
    return torch.cat([rows.float(), torch.ones(len(rows), 1, device=rows.device)], dim=1)


class _Problem:
    """Function to minimize, over all labels or a batch of them."""

    def __init__(
        self, heads: MultiHead, features: Tensor, targets: Tensor, objective: Objective, recipe: HeadRecipe
    ) -> None:
        self.heads, self.features, self.targets = heads, features, targets
        self.recipe = recipe
        self._objective = objective
        self._even = torch.full((1, heads.n_classes), 1 / heads.n_classes, device=features.device)

    def value(self, features: Tensor, targets: Tensor) -> Tensor:
        return self.value_of(self.heads(features), targets)

    def value_of(self, logits: Tensor, targets: Tensor) -> Tensor:
        heads, recipe = self.heads, self.recipe
        loss = self._objective(logits, targets)
        decay = 0.5 * recipe.weight_decay * heads.weight.square().sum() / heads.n_heads
        if not self._objective.loss.rule.has_prior:
            return loss + decay
        at_center = heads.bias.unsqueeze(1)  # logits of an image whose standardized features are 0
        weights = self._objective.head_weights
        prior = multi_head_loss(at_center, self._even, weights, loss_scale=recipe.loss_scale)
        return loss + decay + prior * recipe.prior / len(self.features)


def _descend(problem: _Problem, generator: torch.Generator) -> dict[str, object]:
    recipe, heads = problem.recipe, problem.heads
    optimizer = torch.optim.Adam(heads.parameters(), lr=HEAD_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.updates)
    before = _value_of_all(problem)
    batches = _batches(len(problem.features), generator)
    for _ in range(recipe.updates):
        rows = next(batches)
        features, targets = problem.features[rows], problem.targets[rows]
        if recipe.mixing.is_on:
            features, targets = mix(features, targets, heads.n_classes, recipe.mixing, generator)
        dropout = recipe.dropout
        logits = heads(features) if dropout is None else dropout.train_step(heads, features, generator)
        optimizer.zero_grad()
        torch.autograd.backward(problem.value_of(logits, targets))
        optimizer.step()
        schedule.step()
    return {"updates": recipe.updates, "loss_before": before, "loss_after": _value_of_all(problem)}


def _batches(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of shuffled positions without end. The batches of one pass differ in size by at most one."""
    n_batches = max(1, round(n / HEAD_BATCH))
    while True:
        yield from torch.randperm(n, generator=generator).tensor_split(n_batches)


def _value_of_all(problem: _Problem) -> float:
    with torch.no_grad():
        return problem.value(problem.features, problem.targets).item()


@contextlib.contextmanager
def _threads_for(features: Tensor) -> Iterator[None]:
    """Use one thread for a small problem. Its result then does not depend on the number of cores either."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if features.numel() <= _SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
