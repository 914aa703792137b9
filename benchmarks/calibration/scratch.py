"""Benchmark 2: a small convolutional network from scratch on 5,000 labels, one recipe for every method.

    ALLOOP_DATA=... python benchmarks/calibration/scratch.py --work FOLDER [--set cifar10] [--epochs 12]

Every method starts from the same random trunk (it is drawn from the project's seed), sees the same images at 32 pixels
and the same number of epochs, with early stopping on a part of the labels as always. FOLDER keeps finished cells.
"""

import argparse
import functools
import sys
from pathlib import Path

import data
import numpy as np
from frozen import markdown
from torch import nn

from alloop.config.schema import Config
from alloop.engine.executor_local import LocalExecutor
from alloop.models.backbones import Backbone
from alloop.simulate.compare import CompareSettings, compare
from alloop.simulate.labeled import LabeledImages, Parts
from alloop.simulate.methods import find_methods
from alloop.simulate.summary import summarize, write_tables

METHODS = (
    "SL1H", "2HSL", "2HML", "4HML", "ensemble-5", "LS", "MbLS", "MixUp", "DCA", "FL-3", "FLSD-53", "MMCE", "LogitNorm",
    "MC-dropout", "CutMix", "MixUp/CutMix",
)  # fmt: skip


def small_network() -> Backbone:
    """Network of six convolutions: 72,000 weights, images of 32 pixels, 64 features.

    Two busy cores can train it 60 times. The first convolution takes every other pixel, which makes the network four
    times as fast.
    """

    def block(n_in: int, n_out: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for n_from in (n_in, n_out):
            stride = 2 if n_from == 3 else 1
            convolution = nn.Conv2d(n_from, n_out, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(n_out), nn.ReLU()]
        return [*layers, nn.MaxPool2d(2)]

    trunk = nn.Sequential(*block(3, 16), *block(16, 32), *block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone(trunk, n_features=64, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", choices=["fashion-mnist", "cifar10"], default="fashion-mnist")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=5000)
    parser.add_argument("--calibration", type=int, default=500)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float)
    options = parser.parse_args()
    images = data.load(options.set, options.work, options.test)
    config = Config.model_validate(
        {
            "project": {"classes": images.classes},
            "model": {
                "backbone": "scratch:small_network",
                "weights": "none",
                "mode": "finetune",
                "device": options.device,
            },
            # The trunk's learning rate is a tenth of the heads'.
            "train": {
                "workers": 0,
                "epochs": options.epochs,
                "batch_size": 64,
                "learning_rate": 1e-2,
                "patience": options.epochs,
            },
        }
    )
    settings = CompareSettings(
        config=config,
        methods=find_methods(config, options.methods),
        seeds=options.seeds,
        out=options.work / f"scratch-{options.set}",
        cache=options.work / "cache",
        minutes=options.minutes,
    )
    targets = np.array([images.classes.index(label) for label in images.labels])
    labeled = LabeledImages(images.classes, images.images, targets)

    def say(label: str, done: int, total: int) -> None:
        print(f"\r{label}: {done}/{total}", end="", file=sys.stderr, flush=True)

    comparison = compare(settings, labeled, LocalExecutor(), say, functools.partial(draw_parts, images, options))
    rows = summarize(comparison)
    write_tables(comparison, rows, settings.out)
    print(markdown(options.set, rows) if rows else "nothing finished yet")
    for what in (*comparison.missing, *comparison.failed):
        print("missing:", *what)


def draw_parts(images: data.ImageSet, options: argparse.Namespace, seed: int) -> Parts:
    """Draw random labels and calibration images from the training part; the test images are always the first ones."""
    pool = images.positions("train")
    order = pool[np.random.default_rng(seed).permutation(len(pool))]
    end = options.labels + options.calibration
    return Parts(order[: options.labels], order[options.labels : end], images.positions("test"))


if __name__ == "__main__":
    main()
