"""Benchmark 3: every score on strange images (TrashNet, Fashion-MNIST, digits) among those of CIFAR-10.

    ALLOOP_DATA=... python benchmarks/calibration/ood.py --work FOLDER

Frozen EfficientNet-lite0 at 112 pixels, 600 random labels as in frozen.py. Every strange image is first reduced to the
32 x 32 pixels of CIFAR-10; otherwise its sharpness would distinguish it. Nothing is tuned on any of the sets. ODIN runs
the trunk several times, so it is measured on some images of each side only, drawn at random (`--odin`).
"""

import argparse
import csv
import functools
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import data
import numpy as np
from frozen import SETS, make_config, random_parts
from PIL import Image

from alloop.engine.executor_local import LocalExecutor
from alloop.evaluation.intervals import DRAWS
from alloop.simulate.compare import CompareSettings, compare
from alloop.simulate.labeled import LabeledImages
from alloop.simulate.methods import find_methods
from alloop.simulate.summary import OOD_SHOWN, summarize_ood

METHODS = ("SL1H", "LogitNorm", "4HML")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--test", type=int, help="so many of CIFAR-10's test images")
    parser.add_argument("--strangers", type=int, default=2000, help="at most so many of each set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--odin", type=int, default=200, help="images of each side that ODIN scores")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--draws", type=int, default=DRAWS, help="resamples for the intervals")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("ood.csv"))
    options = parser.parse_args()
    images = data.load("cifar10", options.work, options.test)
    targets = np.array([images.classes.index(label) for label in images.labels])
    labeled = LabeledImages(images.classes, images.images, targets)
    config = make_config(images.classes, SETS["cifar10"])
    lines = []
    for name, files in _sets().items():
        strange = data.unpack({"all": _small(files, options.strangers)}, options.work / f"small-{name}", 1_000_000)
        settings = CompareSettings(
            config=config,
            methods=find_methods(config, options.methods),
            seeds=options.seeds,
            out=options.work / f"ood-{name}",
            cache=options.work / "cache",
            calibrators=(),
            strangers=strange.images,
            odin_images=options.odin,
            draws=options.draws,
        )

        def say(label: str, done: int, total: int, name: str = name) -> None:
            print(f"\r{name} {label}: {done}/{total}", end="", file=sys.stderr, flush=True)

        comparison = compare(settings, labeled, LocalExecutor(), say, functools.partial(random_parts, images))
        print(f"\nCIFAR-10 against {name} ({len(strange.images)} images), {options.seeds} seeds, %\n")
        print("| method | score | " + " | ".join(OOD_SHOWN) + " |\n|---|---|" + "---|" * len(OOD_SHOWN))
        for (method, score), row in summarize_ood(comparison).items():
            cells = [f"{100 * row[metric].mean:.1f} ± {100 * row[metric].std:.1f}" for metric in OOD_SHOWN]
            print(f"| {method} | {score} | " + " | ".join(cells) + " |")
        lines += [
            {
                "out": name,
                "method": cell.method,
                "seed": cell.seed,
                "score": score,
                **found.metrics,
                "auroc_low": found.intervals["auroc"][0],
                "auroc_high": found.intervals["auroc"][1],
            }
            for cell in comparison.cells
            for score, found in cell.ood.items()
        ]
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.5f}" if isinstance(value, float) else value for key, value in line.items()}
            for line in lines
        )


def _sets() -> dict[str, data.Sources]:
    sets = {"trashnet": data.read_zip("trashnet.zip", "labels.csv"), "digits": data.read_digits()}
    if data.has_fashion():
        sets["fashion-mnist"] = data.read_fashion("test")
    return sets


def _small(files: data.Sources, limit: int) -> Iterator[tuple[str, bytes, str]]:
    """Return a random choice of a set, at 32 x 32 pixels."""
    everything = list(files)
    for position in np.random.default_rng(0).permutation(len(everything))[:limit].tolist():
        name, content, label = everything[position]
        with Image.open(io.BytesIO(content)) as image:
            small = image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC, reducing_gap=None)
        target = io.BytesIO()
        small.save(target, format="PNG")
        yield f"{Path(name).stem}-{position}.png", target.getvalue(), label


if __name__ == "__main__":
    main()
