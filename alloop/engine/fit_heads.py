"""Fit heads to fixed features. The problem is small, so it is solved to convergence where the loss allows it."""

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.engine.build import HEAD_BATCH, HEAD_RATE, HeadRecipe
from alloop.engine.device import full_float32
from alloop.engine.objective import Objective
from alloop.losses.cross_entropy import Targets
from alloop.losses.mixing import mix
from alloop.losses.multi_head import multi_head_loss
from alloop.models.heads import MultiHead

_HISTORY = 20  # updates that L-BFGS remembers
_SMALL = 5_000_000  # N * D up to which one thread is fastest: many short operations, 20 times slower on busy cores


def fit_heads(
    features: Float[Tensor, "N D"],
    targets: Targets,
    n_classes: int,
    n_heads: int,
    objective: Objective,
    recipe: HeadRecipe,
    generator: torch.Generator,
) -> tuple[MultiHead, dict[str, object]]:
    """Fit M heads to features, in float32, on the features' device (alloop keeps features on the CPU).

    Targets are labels, or predictions of another model. The heads minimize the objective, plus weight decay, plus the
    cross-entropy of `recipe.prior` imaginary images at the center of the features, which belong to every class alike.
    LogitNorm has no such images, because the logits at the center cannot be normalized. Smooth losses are solved by
    L-BFGS with all labels at once. Other losses, mixed features and dropout go to Adam in mini-batches, which minimizes
    the same sum. benchmarks/recipe says how the numbers were found.

    Returns:
        The heads, and a JSON-able record of the fit.
    """
    heads = MultiHead(features.shape[1], n_heads, n_classes, generator).to(features.device)
    heads.standardize_by(features)
    problem = _Problem(heads, features, targets, objective.to(features.device), recipe)
    with _threads_for(features), full_float32():
        is_solved = recipe.has_one_solution(objective.loss)
        history = _solve_in_span(problem) if is_solved else _descend(problem, generator)
    heads.eval().requires_grad_(requires_grad=False)
    return heads, {"weight_decay": recipe.weight_decay, "prior": recipe.prior, **history}


class _Problem:
    """Function to minimize, over all labels or a batch of them."""

    def __init__(
        self, heads: MultiHead, features: Tensor, targets: Tensor, objective: Objective, recipe: HeadRecipe
    ) -> None:
        self.heads, self.features, self.targets = heads, features, targets
        self.recipe = recipe
        self._objective = objective
        self._even = torch.full((1, heads.n_classes), 1 / heads.n_classes, device=features.device)

    def on(self, heads: MultiHead, features: Tensor) -> "_Problem":
        """Return the same problem with other heads and other features of the same images."""
        return _Problem(heads, features, self.targets, self._objective, self.recipe)

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


def _solve_in_span(problem: _Problem) -> dict[str, object]:
    """Solve in no more dimensions than there are images.

    The part of a weight that is orthogonal to all images changes no logit and decays to 0, so the solution lies in the
    span of the images. A rotation within the span changes neither logits nor decay.
    """
    heads, features = problem.heads, problem.features
    n, n_features = features.shape
    if n >= n_features:
        return _solve(problem)
    standardized = (features.double() - heads.center.double()) / heads.scale.double()
    basis, rows = torch.linalg.qr(standardized.T)  # [D, N] and [N, N]
    small = MultiHead(n, heads.n_heads, heads.n_classes).to(features.device)
    with torch.no_grad():
        small.weight.copy_(heads.weight.double() @ basis)
        small.bias.copy_(heads.bias)
    history = _solve(problem.on(small, rows.T.float()))
    with torch.no_grad():
        heads.weight.copy_(small.weight.double() @ basis.T)
        heads.bias.copy_(small.bias)
    return history


def _solve(problem: _Problem) -> dict[str, object]:
    optimizer = torch.optim.LBFGS(
        problem.heads.parameters(),
        max_iter=problem.recipe.steps,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )
    values: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.value(problem.features, problem.targets)
        torch.autograd.backward(loss)
        values.append(loss.item())
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return {"evaluations": len(values), "loss_before": values[0], "loss_after": values[-1]}


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
