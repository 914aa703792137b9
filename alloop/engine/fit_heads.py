"""Heads on fixed features: a small full-batch problem, solved rather than trained."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alloop.engine.build import HeadRecipe
from alloop.losses.multi_head import Specialties, class_weights, multi_head_loss
from alloop.models.heads import MultiHead

DEFAULT_DECAY = 0.1


def fit_heads(
    features: Float[Tensor, "N D"],
    targets: Int[Tensor, "N"],
    n_classes: int,
    specialties: Specialties,
    recipe: HeadRecipe,
    generator: torch.Generator,
) -> tuple[MultiHead, dict[str, object]]:
    """Fit M heads to labeled features.

    Returns:
        The heads, and what happened, JSON-able.
    """
    heads = MultiHead(features.shape[1], len(specialties), n_classes, generator)
    heads.standardize_by(features)
    decay = DEFAULT_DECAY if recipe.weight_decay is None else recipe.weight_decay
    losses = _minimize(heads, features, targets, class_weights(specialties, n_classes), decay, recipe)
    return heads, {"weight_decay": decay, "losses": losses}


def _minimize(
    heads: MultiHead, features: Tensor, targets: Tensor, weights: Tensor, decay: float, recipe: HeadRecipe
) -> list[float]:
    """L-BFGS on the whole set until the gradient vanishes; returns first and last value."""
    optimizer = torch.optim.LBFGS(
        heads.parameters(),
        max_iter=recipe.steps,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    values: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = multi_head_loss(heads(features), targets, weights, loss_scale=recipe.loss_scale)
        loss = loss + 0.5 * decay * heads.weight.square().sum() / heads.n_heads
        torch.autograd.backward(loss)
        values.append(loss.item())
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return [values[0], values[-1]]
