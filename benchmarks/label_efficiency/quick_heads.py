"""A quicker solver of alloop's four heads on frozen features, for thousands of fits in fast.py.

It minimizes the same function as `alloop.engine.fit_heads`, with a gradient by hand and scipy's L-BFGS in place of
PyTorch's. The minimum is the same up to the tolerance: on TrashNet, probabilities of images never seen differ by
0.0002 on average, and of 757 top classes at most one differs. It takes a third to a tenth of the processor time.
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

from alloop.engine.build import HeadRecipe
from alloop.engine.objective import Objective
from alloop.models.heads import MultiHead

Array = npt.NDArray[np.floating]
OPTIONS = {"maxiter": 200, "maxcor": 20, "maxfun": 400, "ftol": 2e-8, "gtol": 1e-5}


def fit_heads(
    features: Tensor,
    targets: Tensor,
    n_classes: int,
    n_heads: int,
    objective: Objective,
    recipe: HeadRecipe,
    generator: torch.Generator,
) -> tuple[MultiHead, dict[str, object]]:
    """Fit as `alloop.engine.fit_heads.fit_heads` does, for cross-entropy with weights of heads."""
    heads = MultiHead(features.shape[1], n_heads, n_classes, generator)
    heads.standardize_by(features)
    rows = ((features.double() - heads.center.double()) / heads.scale.double()).numpy()
    is_wide = rows.shape[0] < rows.shape[1]
    basis, turned = np.linalg.qr(rows.T) if is_wide else (np.eye(rows.shape[1]), rows.T)
    omega = np.ones((n_heads, n_classes)) if objective.head_weights is None else objective.head_weights.double().numpy()
    start = heads.weight.detach().double().numpy().reshape(-1, rows.shape[1]) @ basis
    found = minimize(
        _value,
        np.concatenate([start.ravel(), np.zeros(omega.size)]),
        args=(turned.T.astype(np.float32), targets.numpy(), omega, recipe.weight_decay, recipe.prior),
        jac=True,
        method="L-BFGS-B",
        options=OPTIONS,
    )
    weight = found.x[: start.size].reshape(start.shape) @ basis.T
    with torch.no_grad():
        heads.weight.copy_(torch.from_numpy(weight.reshape(heads.weight.shape)))
        heads.bias.copy_(torch.from_numpy(found.x[start.size :].reshape(heads.bias.shape)))
    heads.eval().requires_grad_(requires_grad=False)
    return heads, {"evaluations": int(found.nfev), "loss_after": float(found.fun)}


def _value(
    x: Array, rows: Array, targets: npt.NDArray[np.int64], omega: Array, decay: float, prior: float
) -> tuple[float, Array]:
    """Return the objective of `fit_heads` and its gradient, for weights [M K, D] and biases [M K] in one vector.

    The slope of -log p̄_y by the logits of head m is s_m (p_m - onehot(y)), with s_m = p_my / Σ_m p_my.
    """
    n, n_features = rows.shape
    n_heads, n_classes = omega.shape
    weight, bias = x[: omega.size * n_features].reshape(omega.size, n_features), x[omega.size * n_features :]
    logits = (rows @ weight.T.astype(np.float32) + bias.astype(np.float32)).reshape(n, n_heads, n_classes)
    logits -= logits.max(axis=2, keepdims=True)
    probs = np.exp(logits)
    sums = probs.sum(axis=2, keepdims=True)
    probs /= sums
    here = np.arange(n)
    at_target = logits[here, :, targets] - np.log(sums[:, :, 0])  # log p_my [N, M]
    highest = at_target.max(axis=1)
    total = highest + np.log(np.exp(at_target - highest[:, None]).sum(axis=1))
    weights = omega[:, targets].T
    scale = 1 / (n * (n_heads + 1))
    value = scale * float((np.log(n_heads) - total).sum() - (weights * at_target).sum())
    factors = (scale * (np.exp(at_target - total[:, None]) + weights)).astype(np.float32)
    slopes = probs * factors[:, :, None]
    slopes[here, :, targets] -= factors
    slopes = slopes.reshape(n, omega.size)
    at_center, center_slopes = _center_value(bias.reshape(omega.shape), omega)
    value += prior * scale * at_center + 0.5 * decay / n_heads * float((weight**2).sum())
    by_weight = slopes.T @ rows + decay / n_heads * weight
    by_bias = slopes.sum(axis=0, dtype=np.float64) + prior * scale * center_slopes.ravel()
    return value, np.concatenate([by_weight.ravel(), by_bias])


def _center_value(bias: Array, omega: Array) -> tuple[float, Array]:
    """Return the loss of an imaginary image at the center that belongs to every class alike, and its slope by bias."""
    n_heads, n_classes = omega.shape
    shifted = bias - bias.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    probs, even = np.exp(log_probs), 1 / n_classes
    mean = probs.mean(axis=0)
    ratio = even / (n_heads * mean)
    value = -even * float(np.log(mean).sum() + (omega * log_probs).sum())
    pooled = -probs * (ratio - (probs @ ratio)[:, None])
    return value, pooled + even * (probs * omega.sum(axis=1, keepdims=True) - omega)
