"""The trunk of a pool that is given as features: it stands for what was computed elsewhere, and computes nothing."""

from torch import Tensor, nn

from alloop.errors import ModelError


class Given(nn.Module):
    """Refuses every image: there are only features."""

    def forward(self, images: Tensor) -> Tensor:
        raise ModelError(
            "Features were given, not images, so there is no trunk to run.",
            "Add images to a workspace whose [model] backbone can look at them.",
        )
