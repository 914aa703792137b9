"""Heads on fixed features: a small smooth problem, solved to the end rather than trained for a while."""

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.engine.build import HeadRecipe
from alloop.losses.multi_head import Specialties, class_weights, multi_head_loss
from alloop.models.heads import MultiHead

_HISTORY = 20  # updates that L-BFGS remembers
_SMALL = 5_000_000  # N * D up to which one thread is the fastest: many short operations, 20 times slower on busy cores


def fit_heads(
    features: Float[Tensor, "N D"],
    targets: Int[Tensor, "N"],
    n_classes: int,
    specialties: Specialties,
    recipe: HeadRecipe,
    generator: torch.Generator,
) -> tuple[MultiHead, dict[str, object]]:
    """Fit M heads to labeled features with L-BFGS on all of them at once, on the CPU, in float32.

    Minimizes the multi-head loss, plus decay, plus the loss of `recipe.prior` images that lie at the features' center
    and belong to every class alike. How the numbers were found: benchmarks/recipe.

    Returns:
        The heads, and what happened, JSON-able.
    """
    heads = MultiHead(features.shape[1], len(specialties), n_classes, generator)
    heads.standardize_by(features)
    weights = class_weights(specialties, n_classes)
    optimizer = torch.optim.LBFGS(
        heads.parameters(),
        max_iter=recipe.steps,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )
    values: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _objective(heads, features, targets, weights, recipe)
        torch.autograd.backward(loss)
        values.append(loss.item())
        return loss

    with _threads_for(features):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    heads.eval().requires_grad_(requires_grad=False)
    return heads, {
        "weight_decay": recipe.weight_decay,
        "prior": recipe.prior,
        "evaluations": len(values),
        "loss_before": values[0],
        "loss_after": values[-1],
    }


def _objective(heads: MultiHead, features: Tensor, targets: Tensor, weights: Tensor, recipe: HeadRecipe) -> Tensor:
    n_classes = heads.n_classes
    loss = multi_head_loss(heads(features), targets, weights, loss_scale=recipe.loss_scale)
    decay = 0.5 * recipe.weight_decay * heads.weight.square().sum() / heads.n_heads
    even = torch.full((1, n_classes), 1 / n_classes)
    at_center = heads.bias.unsqueeze(1)  # what the heads say of an image whose standardized features are 0
    prior = multi_head_loss(at_center, even, weights, loss_scale=recipe.loss_scale)
    return loss + decay + prior * recipe.prior / len(features)


@contextlib.contextmanager
def _threads_for(features: Tensor) -> Iterator[None]:
    """One thread for a small problem; its result then does not depend on how many there are, either."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if features.numel() <= _SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
