"""Placeholder for the trunk of a pool that consists of given features."""

from torch import Tensor, nn

from alloop.errors import ModelError


class Given(nn.Module):
    """Trunk that refuses every image, because the pool holds only features."""

    def forward(self, images: Tensor) -> Tensor:
        raise ModelError(
            "Features were given, not images, so there is no trunk to run.",
            "Add images to a workspace whose [model] backbone can look at them.",
        )
