"""Features without learned weights, for small and simple images. Nothing is trained or downloaded."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

N_FILTERS, GRID = 64, 4


class Pixels(nn.Module):
    """Responses of 64 fixed random 3 x 3 filters, rectified and averaged over a grid of 4 x 4 cells: D = 1024.

    The filters are drawn from a fixed seed and sum to zero, so that constant brightness has no effect. On 8 x 8 digits
    these features beat the pixels themselves at every number of labels (benchmarks/recipe).

    Source: Saxe et al., "On Random Weights and Unsupervised Feature Learning", ICML 2011.
    """

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.randn(N_FILTERS, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.register_buffer("filters", drawn - drawn.mean(dim=(2, 3), keepdim=True))
        self.n_features = N_FILTERS * GRID * GRID

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        responses = functional.conv2d(images, self.filters, padding=1).relu()
        return functional.adaptive_avg_pool2d(responses, GRID).flatten(start_dim=1)
