"""Features without weights: the image itself, and fixed random ones of it, for small simple images."""

from jaxtyping import Float
from torch import Tensor, nn


class Pixels(nn.Module):
    """Gray pixels [S * S], flattened; nothing is learned and nothing is downloaded."""

    def __init__(self, image_size: int = 8) -> None:
        super().__init__()
        self.n_features = image_size * image_size

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        return images.mean(dim=1).flatten(start_dim=1)
