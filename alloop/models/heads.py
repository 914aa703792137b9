"""Linear heads on one trunk: features [B, D] to logits [M, B, K], always in float32."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MultiHead(nn.Module):
    """Independent linear classifiers (M heads) on the same standardized features.

    Pooling is a separate step (`predictive.mean_log_probs`), in training and in scoring. bfloat16 logits near 30 have a
    spacing of 0.25, so autocast is off here (docs/methods.md sections 4 and 11).

    Args:
        n_features, n_heads, n_classes: Numbers D, M and K.
        generator: Generator of the initial weights. Each head has its own, since equal heads stay close under equal
            losses.

    State: `weight` [M, K, D], `bias` [M, K], and the standardization of features, `center` [D] and `scale` [] (0 and 1
    until `standardize_by`).
    """

    center: Tensor
    scale: Tensor

    def __init__(self, n_features: int, n_heads: int, n_classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_features)
        draw = torch.rand(n_heads, n_classes, n_features, generator=generator)
        self.weight = nn.Parameter((2 * draw - 1) * bound)
        self.bias = nn.Parameter(torch.zeros(n_heads, n_classes))
        self.register_buffer("center", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(()))

    @property
    def n_heads(self) -> int:
        return self.weight.shape[0]

    @property
    def n_classes(self) -> int:
        return self.weight.shape[1]

    def standardize_by(self, features: Float[Tensor, "N D"]) -> None:
        """Set the standardization: features are centered, and their mean squared norm becomes 1.

        All features share one scale. With scales of their own, features that vary little among a few labeled images
        would become huge on other images (benchmarks/recipe). Features that are all equal are only centered.
        """
        _, center, scale = standardize(features)
        self.center.copy_(center)
        self.scale.copy_(scale)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "M B K"]:
        """Return the logits of every head, float32 (float64 if the module is float64)."""
        with torch.autocast(features.device.type, enabled=False):
            centered = (features.to(self.weight.dtype) - self.center) / self.scale
            return torch.einsum("bd,mkd->mbk", centered, self.weight) + self.bias.unsqueeze(1)


def standardize(features: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N D"], Float[Tensor, "D"], Float[Tensor, ""]]:
    """Return standardized features, float64, and their center and scale; see `MultiHead.standardize_by`."""
    wide = features.double()
    center = wide.mean(dim=0)
    wide = wide - center
    norm = wide.square().sum(dim=1).mean().sqrt()
    scale = torch.where(norm > 1e-12, norm, torch.ones_like(norm))
    return wide / scale, center, scale
