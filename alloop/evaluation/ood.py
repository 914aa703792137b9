"""Scores of images unlike the training images. Higher means: more likely out of distribution.

Two kinds of input with two names: `log_probs` [M, N, K] are normalized, `logits` [M, N, K] are raw. Scores of
logits are means of the members' scores, because a pooled prediction has no logits.

Source of all formulas and defaults: docs/methods.md section 9.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from alloop import predictive
from alloop.predictive import check_log_probs, mean_log_probs

_SMALLEST = 1e-7  # GEN clamps probabilities to [this, 1 - this]
_ROUNDING = 1e-5  # tolerance of the log of a sum of probabilities

Scores = Float[Tensor, "N"]


def msp(log_probs: Float[Tensor, "M N K"]) -> Scores:
    """Return -max_k p̄_k, in [-1, -1/K]. Source: Hendrycks & Gimpel, ICLR 2017."""
    return -_pooled(log_probs).amax(dim=-1).exp()


def entropy(log_probs: Float[Tensor, "M N K"]) -> Scores:
    """Return the entropy of p̄ in nats, in [0, ln K]."""
    return predictive.entropy(_pooled(log_probs))


def mutual_information(log_probs: Float[Tensor, "M N K"]) -> Scores:
    """Return the mutual information in nats. Raises ValueError for a single member."""
    return predictive.mutual_information(log_probs)


def gen(log_probs: Float[Tensor, "M N K"], gamma: float = 0.1, top: int = 100) -> Scores:
    """Return the generalized entropy Σ p^γ (1 - p)^γ of p̄ over its `top` largest probabilities in [1e-7, 1 - 1e-7].

    The clamp is part of the definition: with γ = 0.1, a probability of 1e-7 adds 0.2.

    Source: Liu, Lochman & Zach, CVPR 2023, equation 2.
    """
    pooled = _pooled(log_probs)
    probs = pooled.topk(min(top, pooled.shape[-1]), dim=-1).values.exp().clamp(_SMALLEST, 1 - _SMALLEST)
    return (probs * (1 - probs)).pow(gamma).sum(dim=-1)


def max_logit(logits: Float[Tensor, "M N K"]) -> Scores:
    """Return -max_k z_k, averaged over members.

    Raises:
        ValueError: The logits are log-probabilities; a row is not finite.
    """
    return -_raw(logits, "max logit").amax(dim=-1).mean(dim=0)


def energy(logits: Float[Tensor, "M N K"], temperature: float = 1.0) -> Scores:
    """Return -T logsumexp(z / T), averaged over members.

    Raises:
        ValueError: The logits are log-probabilities, whose energy is 0 for every image; a row is not finite.

    Source: Liu et al., NeurIPS 2020, equation 4.
    """
    return -(temperature * (_raw(logits, "energy") / temperature).logsumexp(dim=-1)).mean(dim=0)


def gradnorm(
    features: Float[Tensor, "*members N D"], logits: Float[Tensor, "M N K"], temperature: float = 1.0
) -> Scores:
    """Return -‖h‖₁ ‖softmax(z/T) - 1/K‖₁ / T, averaged over members.

    This is the closed form of the negative L1 norm of the gradient of the cross-entropy between the uniform
    distribution and the prediction, with respect to the last layer's weights. It fails on some networks.

    Args:
        features: Inputs of the last layer: [N, D] shared by the members, or [M, N, D].
        logits: Raw logits.
        temperature: Temperature T.

    Raises:
        ValueError: The logits are log-probabilities; a row is not finite.

    Source: Huang, Geng & Li, NeurIPS 2021, equations 3 and 7.
    """
    wide = _raw(logits, "GradNorm")
    lengths = _wide(features).abs().sum(dim=-1)
    gap = ((wide / temperature).softmax(dim=-1) - 1 / wide.shape[-1]).abs().sum(dim=-1)
    return _finite(-(lengths * gap / temperature).mean(dim=0), "GradNorm")


def odin(
    network: Callable[[Tensor], Tensor],
    images: Float[Tensor, "N C *S"],
    temperature: float = 1000.0,
    epsilon: float = 0.0014,
    std: Float[Tensor, "C"] | None = None,
) -> Scores:
    """Return -max softmax(z(x̂)/T), x̂ = x - ε sign(∇ₓ CE(z(x)/T, ŷ)) / σ, averaged over members with their own x̂.

    This takes one forward pass, and for every member a backward and another forward pass. Gradients go to the images
    only. T and ε must not be tuned on the sets that are reported.

    Args:
        network: Deterministic function from images to raw logits [N, K] or [M, N, K]; in eval mode (otherwise batch
            statistics leak), and not under `torch.inference_mode`.
        images: Normalized images [N, C, H, W], or rows of numbers [N, C].
        temperature: Temperature T.
        epsilon: Step ε, in pixel units of [0, 1] if `std` is given.
        std: Standard deviation σ of the normalization for each channel; None: 1.

    Raises:
        ValueError: A module is in training mode, the logits have no gradient, or a row is not finite.

    Source: Liang, Li & Srikant, ICLR 2018, equations 1 and 2.
    """
    if isinstance(network, torch.nn.Module) and any(module.training for module in network.modules()):
        raise ValueError("ODIN needs a network in eval mode, or batch statistics leak into the scores")
    step = torch.full_like(images[:1], epsilon)
    if std is not None:
        step = step / std.to(images).reshape(1, -1, *[1] * (images.ndim - 2))
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        log_probs = (_members(network(leaf)) / temperature).log_softmax(dim=-1)
        # The sum of cross-entropies with the model's own top class gives every image its own gradient.
        losses = (-log_probs.amax(dim=-1).sum(dim=-1)).unbind()
    if not losses[0].requires_grad:
        raise ValueError("ODIN needs the gradient with respect to the images, and this network gives none")
    scores = []
    for member, loss in enumerate(losses):
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=member < len(losses) - 1)
        with torch.no_grad():
            moved = _members(network(images - step * gradient.sign()))[member]
            scores.append(-(moved / temperature).softmax(dim=-1).amax(dim=-1))
    return _finite(torch.stack(scores).mean(dim=0), "ODIN")


def check_varies(scores: Scores, name: str) -> None:
    """Refuse a score that is the same for all images of a pool. It ranks nothing, and its input is usually wrong.

    Raises:
        ValueError: Two or more images have only one value, or a value is not finite.
    """
    _finite(scores, name)
    if len(scores) > 1 and bool((scores == scores[0]).all()):
        raise ValueError(f"the score {name} is {float(scores[0]):g} for all {len(scores)} images: it ranks nothing")


def _pooled(log_probs: Tensor) -> Tensor:
    check_log_probs(log_probs)
    return mean_log_probs(log_probs)


def _members(logits: Tensor) -> Tensor:
    """Return logits [M, N, K], float32 or wider, because at T = 1000 a softmax in half precision is flat."""
    wide = _wide(logits)
    return wide if wide.ndim == 3 else wide.unsqueeze(0)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _raw(logits: Tensor, name: str) -> Tensor:
    """Return logits in float32 or wider, after checking that they are raw and finite."""
    wide = _wide(logits)
    bad = ~torch.isfinite(wide).all(dim=-1).all(dim=0)
    if bool(bad.any()):
        raise ValueError(f"the logits at position {int(bad.nonzero()[0])} are not finite")
    if wide.numel() and bool((wide.logsumexp(dim=-1).abs() < _ROUNDING).all()):
        raise ValueError(f"{name} needs raw logits, and these are log-probabilities, which say nothing about it")
    return wide


def _finite(scores: Tensor, name: str) -> Tensor:
    bad = ~torch.isfinite(scores)
    if bool(bad.any()):
        raise ValueError(f"the score {name} at position {int(bad.nonzero()[0])} is not finite")
    return scores
