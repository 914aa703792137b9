"""Small networks, used as a user's own trunks: residual ones for images of 32 pixels, and a vision transformer."""

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VisionTransformer

from alloop.models.backbones import Backbone


class Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(n_out)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(n_out)
        is_same = stride == 1 and n_in == n_out
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        inner = functional.relu(self.norm_1(self.first(images)))
        return functional.relu(self.norm_2(self.second(inner)) + self.shortcut(images))


def _network(width: int, blocks: int) -> Backbone:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    n_in = width
    for stage in range(3):
        n_out = width * 2**stage
        for number in range(blocks):
            layers.append(Block(n_in, n_out, 2 if stage and not number else 1))
            n_in = n_out
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone(trunk, n_features=n_in, image_size=32, mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))


def small_resnet() -> Backbone:
    """Three stages of two blocks, 64 to 256 channels: 2.8 million weights."""
    return _network(64, 2)


def tiny_resnet() -> Backbone:
    """A very small trunk for a rehearsal on a CPU."""
    return _network(8, 1)


def tiny_vit() -> Backbone:
    """A very small vision transformer for a rehearsal on a CPU."""
    module = VisionTransformer(64, 16, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128)
    module.heads = nn.Identity()
    return Backbone(module, n_features=64, image_size=64)
