"""Networks, pictures and jobs for the GPU tests. Child processes can import it."""

import copy
import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from alloop.config.schema import Config, ModelConfig, ProjectConfig, TrainConfig
from alloop.engine.build import Hardware
from alloop.engine.jobs import FeatureJob, ScoreJob, TrainJob
from alloop.engine.settings import EngineSettings
from alloop.engine.trunk_passes import prepare_trunk, run_trunk
from alloop.models.backbones import Backbone, load_backbone
from alloop.records import ImageRef, ModelFiles

CLASSES = ("vertical", "horizontal", "checkered", "plain")
CPU = torch.device("cpu")
# Rehearsal on the CPU: see conftest.py.
REHEARSES = os.environ.get("ALLOOP_GPU_TESTS", "cuda" if torch.cuda.is_available() else "cpu") == "cpu"
EXAMPLE = Path(__file__).parents[2] / "examples" / "trashnet"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes on a card and in a rehearsal.

    Attributes:
        trunks: Torchvision names with their image size; None: the published one.
        batches: Numbers of images that go through a trunk together; the last one is the largest.
        reference: Number of images of the largest batch that are compared with the CPU's results.
    """

    trunks: dict[str, int | None]
    batches: tuple[int, ...]
    reference: int
    pool: int
    steps: int

    @classmethod
    def real(cls) -> "Sizes":
        names = ("resnet50", "efficientnet_b0", "vit_b_16", "convnext_tiny")
        return cls(dict.fromkeys(names), (1, 7, 256), 32, 2000, 200)

    @classmethod
    def tiny(cls) -> "Sizes":
        trunks = {"resnet18": 32, "efficientnet_b0": 32, "vit_small": None, "convnext_tiny": 32}
        return cls(trunks, (1, 2, 3), 3, 200, 20)


def own_trunk() -> Backbone:
    """A user's own trunk, for `gpu_toys:own_trunk`: odd numbers of channels, a group norm, and a mean."""
    torch.manual_seed(5)
    layers = [
        nn.Conv2d(3, 24, 5, stride=2, padding=2),
        nn.GroupNorm(4, 24),
        nn.GELU(),
        nn.Conv2d(24, 56, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(56),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(56, 40),
    ]
    backbone = Backbone(nn.Sequential(*layers), n_features=40, image_size=32)
    settle(backbone)
    return backbone


def wide_trunk() -> Backbone:
    """A trunk that needs about 200 MB for a single image."""
    torch.manual_seed(6)
    layers = [nn.Conv2d(3, 256, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Backbone(nn.Sequential(*layers), n_features=256, image_size=256)


def plain_trunk() -> Backbone:
    """A trunk without batch normalization and dropout: an image's gradient does not depend on the rest of the batch."""
    torch.manual_seed(7)
    layers = [
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return Backbone(nn.Sequential(*layers), n_features=64, image_size=64)


def dropping_trunk() -> Backbone:
    """A trunk with dropout, and with batch normalization that starts without statistics."""
    torch.manual_seed(8)
    layers = [
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return Backbone(nn.Sequential(*layers), n_features=32, image_size=32)


def settle(backbone: Backbone) -> None:
    """Give batch normalization the statistics of some pictures, as training would."""
    norms = [module for module in backbone.module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    backbone.module.eval()
    for norm in norms:
        norm.momentum = None
        norm.train()
    if norms:
        with torch.no_grad():
            backbone.module(backbone.normalize(pictures(8, backbone.image_size, seed=99)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    backbone.module.eval()


def load_trunk(name: str, image_size: int | None) -> Backbone:
    """Return a torchvision trunk with weights of a fixed seed and realistic statistics; "lite0" has trained weights."""
    if name == "lite0":
        return load_backbone("backbone:efficientnet_lite0", search_paths=[EXAMPLE])
    backbone = _small_vit() if name == "vit_small" else load_backbone(name, "none", image_size, seed=3)
    settle(backbone)
    return backbone


def _small_vit() -> Backbone:
    torch.manual_seed(3)
    module = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128)
    module.heads = nn.Identity()
    return Backbone(module, n_features=64, image_size=32)


def pictures(n: int, size: int, seed: int = 0) -> Tensor:
    """Return noise of several scales, uint8 [n, 3, size, size]; the first pictures do not depend on n."""
    images = []
    for number in range(n):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        image = torch.zeros(1, 3, size, size)
        for cells in (3, 9, size):
            noise = torch.rand(1, 3, cells, cells, generator=generator)
            image += nn.functional.interpolate(noise, size=(size, size), mode="bilinear")
        images.append((image[0] * 85).to(torch.uint8))
    return torch.stack(images)


def on(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a module on a device."""
    return copy.deepcopy(module).to(device)


def run(backbone: Backbone, images: Tensor, device: torch.device) -> Tensor:
    """Return features of one batch by a copy of the trunk on a device."""
    there = dataclasses.replace(backbone, module=on(backbone.module, device))
    return run_trunk(prepare_trunk(there, device), images)


def hardware(device: torch.device, batch_size: int = 32) -> Hardware:
    return Hardware(device, batch_size, workers=0)


def relative(one: Tensor, other: Tensor) -> float:
    """Return the largest |a - b| / |b| over rows, with Euclidean norms; b is the reference."""
    one, other = one.double().cpu().flatten(1), other.double().cpu().flatten(1)
    return float(((one - other).norm(dim=1) / other.norm(dim=1)).max())


def relative_to_spread(one: Tensor, other: Tensor) -> float:
    """Return the same, relative to the differences between images: the reference's rows without their mean."""
    one, other = one.double().cpu().flatten(1), other.double().cpu().flatten(1)
    spread = (other - other.mean(dim=0)).norm(dim=1).mean()
    return float((one - other).norm(dim=1).max() / spread)


@dataclasses.dataclass(frozen=True)
class Toys:
    """120 images of 4 classes in turn, and jobs over them: 60 to train on, 40 held out, 20 to score."""

    root: Path
    images: tuple[ImageRef, ...]
    targets: tuple[int, ...]

    def config(self, backbone: str, train: dict[str, object] | None = None, **model: object) -> Config:
        # Features in bfloat16 have tests of their own.
        settings = {"backbone": f"gpu_toys:{backbone}", "weights": "none", "precision": "float32", **model}
        return Config(
            project=ProjectConfig(classes=CLASSES),
            model=ModelConfig(**settings),
            train=TrainConfig(**{"workers": 0, "batch_size": 32, **(train or {})}),
        )

    def train_job(self, config: Config, device: torch.device, cache: Path, out: Path, **changes: object) -> TrainJob:
        job = TrainJob(
            settings=EngineSettings.of(config),
            classes=CLASSES,
            images=self.images[:60],
            targets=self.targets[:60],
            holdout=self.images[60:100],
            holdout_targets=self.targets[60:100],
            seed=1,
            cache=cache,
            out=out,
            device=str(device),
        )
        return dataclasses.replace(job, **changes)

    def score_job(
        self, config: Config, files: ModelFiles, device: torch.device, cache: Path, out: Path, **changes: object
    ) -> ScoreJob:
        job = ScoreJob(EngineSettings.of(config), files, self.images[100:], cache, out, device=str(device))
        return dataclasses.replace(job, **changes)

    def feature_job(self, config: Config, device: torch.device, cache: Path) -> FeatureJob:
        return FeatureJob(EngineSettings.of(config), self.images, cache, device=str(device))


def make_toys(root: Path) -> Toys:
    generator = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for number in range(120):
        Image.fromarray(_draw(number % 4, generator)).save(root / "images" / f"{number:03}.png")
    return find_toys(root)


def find_toys(root: Path) -> Toys:
    """Return the toys that `make_toys` has written."""
    paths = sorted((root / "images").glob("*.png"))
    images = [
        ImageRef(number + 1000, hashlib.sha256(path.read_bytes()).hexdigest(), str(path))
        for number, path in enumerate(paths)
    ]
    return Toys(root, tuple(images), tuple(number % 4 for number in range(len(paths))))


def drawn(n: int, noise: float) -> tuple[Tensor, Tensor]:
    """Return pictures uint8 [n, 3, 32, 32] of the classes in turn, and their classes."""
    generator = np.random.default_rng(1)
    images = np.stack([_draw(number % 4, generator, noise) for number in range(n)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.arange(n) % 4


def _draw(kind: int, generator: np.random.Generator, noise: float = 40) -> np.ndarray:
    rows, columns = np.indices((32, 32)) // 4 % 2
    pattern = (columns, rows, rows ^ columns, np.full((32, 32), 0.5))[kind]
    gray = 60 + 100 * pattern[..., None] + generator.normal(0, noise, (32, 32, 3))
    return gray.clip(0, 255).astype(np.uint8)
