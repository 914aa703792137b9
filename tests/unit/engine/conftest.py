"""A small pool of striped images, and jobs over it."""

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alloop.config.schema import Config, ModelConfig, ProjectConfig, TrainConfig
from alloop.engine.jobs import ScoreJob, TrainJob
from alloop.engine.settings import EngineSettings
from alloop.records import ImageRef

CLASSES = ("vertical", "horizontal", "checkered")
TRUNK = """
import torch
from torch import nn
from alloop.models.backbones import Backbone

def untrained():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Backbone(nn.Sequential(*layers), n_features=8, image_size=16)

def tiny():
    backbone = untrained()
    backbone.module[1].running_mean.fill_(0.25)
    return backbone
"""


@dataclasses.dataclass(frozen=True)
class Toys:
    """90 images of 3 classes in turn, and the workspace that they lie in."""

    root: Path
    images: tuple[ImageRef, ...]
    targets: tuple[int, ...]
    trunk: str

    def config(self, backbone: str = "pixels", train: TrainConfig | None = None, **model: object) -> Config:
        return Config(
            project=ProjectConfig(classes=CLASSES),
            model=ModelConfig(backbone=backbone, device="cpu", **model),
            train=train or TrainConfig(workers=0, epochs=40),
        )

    def train_job(self, config: Config | None = None, **changes: object) -> TrainJob:
        job = TrainJob(
            settings=EngineSettings.of(config or self.config()),
            classes=CLASSES,
            images=self.images[:15],
            targets=self.targets[:15],
            holdout=self.images[15:75],
            holdout_targets=self.targets[15:75],
            seed=1,
            cache=self.root / "cache",
            out=self.root / "runs" / "model",
        )
        return dataclasses.replace(job, **changes)

    def score_job(self, model, config: Config | None = None, **changes: object) -> ScoreJob:
        job = ScoreJob(
            settings=EngineSettings.of(config or self.config()),
            model=model,
            images=self.images[75:],
            cache=self.root / "cache",
            out=self.root / "runs" / "scores.parquet",
        )
        return dataclasses.replace(job, **changes)


def _draw(kind: int, generator: np.random.Generator) -> np.ndarray:
    rows, columns = np.indices((16, 16)) // 2 % 2
    pattern = (columns, rows, rows ^ columns)[kind]
    gray = 60 + 120 * pattern + generator.normal(0, 12, (16, 16))
    return np.repeat(gray.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def make_toys(folder: Path) -> Toys:
    """Write the toys into an empty folder."""
    generator = np.random.default_rng(0)
    images = []
    for number in range(90):
        path = folder / "images" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(_draw(number % 3, generator)).save(path)
        images.append(ImageRef(number + 1000, hashlib.sha256(path.read_bytes()).hexdigest(), str(path)))
    (folder / "toy_trunk.py").write_text(TRUNK)
    return Toys(folder, tuple(images), tuple(number % 3 for number in range(90)), "toy_trunk:tiny")


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[Toys]:
    yield make_toys(tmp_path)
    sys.modules.pop("toy_trunk", None)


@pytest.fixture(scope="module")
def shared_toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """Return toys of all tests of a file, for models that tests only read."""
    return make_toys(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def heard() -> tuple[list[tuple[str, int, int]], Callable[[str, int, int], None]]:
    """Return the messages of progress, and the listener that records them."""
    calls: list[tuple[str, int, int]] = []
    return calls, lambda label, done, total: calls.append((label, done, total))
