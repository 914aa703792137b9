"""Benchmark 1: every method on frozen EfficientNet-lite0 features, 600 random labels, TrashNet and CIFAR-10.

    ALLOOP_DATA=... python benchmarks/calibration/frozen.py --work FOLDER

FOLDER keeps images, features and finished cells; a second run continues where the first one stopped. For every seed,
600 images are drawn at random for training, and 200 others for the calibrators. TrashNet is measured on all its other
images, CIFAR-10 (pool: the first 20,000 training images) on its test images.
"""

import argparse
import csv
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import data
import numpy as np

from alloop.composition import CALIBRATORS
from alloop.config.load import set_values
from alloop.config.schema import Config
from alloop.engine.executor_local import LocalExecutor
from alloop.evaluation.intervals import DRAWS
from alloop.simulate.compare import CompareSettings, Comparison, compare
from alloop.simulate.labeled import LabeledImages, Parts
from alloop.simulate.methods import find_methods
from alloop.simulate.summary import MethodRow, summarize, write_tables

SETS = {"trashnet": None, "cifar10": 112}  # name → image size; None: the size of the weights
N_LABELS, N_CALIBRATION, N_SEEDS = 600, 200, 5
FITTED = tuple(name for name in CALIBRATORS if name != "none")
BOUNDED = ("accuracy", "ece", "nll")  # metrics whose intervals are committed; a comparison's own tables have all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=N_SEEDS)
    parser.add_argument("--test", type=int, help="measure on so many of CIFAR-10's test images")
    parser.add_argument("--decay", type=float, help="weight decay of the heads, instead of the tuned 5e-5")
    parser.add_argument("--minutes", type=float, help="begin no new cell after this time")
    parser.add_argument("--calibrators", nargs="+", default=list(FITTED), choices=FITTED)
    parser.add_argument("--draws", type=int, default=DRAWS, help="resamples for the intervals")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("frozen.csv"))
    options = parser.parse_args()
    lines = []
    for name in options.sets:
        comparison = run(name, options)
        rows = summarize(comparison)
        write_tables(comparison, rows, options.work / f"frozen-{name}")
        with (options.work / f"frozen-{name}" / "cells.csv").open() as file:
            decay = "tuned" if options.decay is None else options.decay
            lines += [{"set": name, "decay": decay, **short(line)} for line in csv.DictReader(file)]
        print(markdown(name, rows), of_calibrators(name, rows), sep="\n")
        for failed in comparison.failed:
            print("failed:", *failed)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def run(name: str, options: argparse.Namespace) -> Comparison:
    images = data.load(name, options.work, options.test)
    config = make_config(images.classes, SETS[name])
    if options.decay is not None:
        config = set_values(config, train={"weight_decay": options.decay})
    labeled = LabeledImages(
        images.classes, images.images, np.array([images.classes.index(label) for label in images.labels])
    )
    settings = CompareSettings(
        config=config,
        methods=find_methods(config, options.methods),
        seeds=options.seeds,
        out=options.work / f"frozen-{name}",
        cache=options.work / "cache",
        calibrators=tuple(options.calibrators),
        minutes=options.minutes,
        draws=options.draws,
    )
    draw = functools.partial(random_parts, images)

    def say(label: str, done: int, total: int) -> None:
        print(f"\r{name} {label}: {done}/{total}", end="", file=sys.stderr, flush=True)

    return compare(settings, labeled, LocalExecutor(), say, draw)


def make_config(classes: Sequence[str], image_size: int | None) -> Config:
    return Config.model_validate(
        {
            "project": {"classes": tuple(classes)},
            "model": {
                "backbone": "backbone:efficientnet_lite0",
                "weights": "none",
                "image_size": image_size,
                "device": "cpu",
            },
        }
    )


def random_parts(images: data.ImageSet, seed: int) -> Parts:
    """Draw 600 + 200 random images of the pool; the measured images are the test part, or all the rest."""
    test = images.positions("test")
    pool = images.positions("train" if len(test) else "all")
    order = pool[np.random.default_rng(seed).permutation(len(pool))]
    end = N_LABELS + N_CALIBRATION
    return Parts(order[:N_LABELS], order[N_LABELS:end], test if len(test) else order[end:])


def markdown(name: str, rows: Sequence[MethodRow]) -> str:
    """The table of the README."""
    lines = [
        f"\n{name}, {rows[0].n_test} test images, {rows[0].n_seeds} seeds: mean ± standard deviation (ddof 0)\n",
        "| method | ACC % | ECE % | NLL | Brier | rank | ECE % after T | NLL after T | train s | score × |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        raw, after = row.stages["raw"], row.stages.get("temperature", row.stages["raw"])
        cells = [
            _cell(raw["accuracy"], 100, 1), _cell(raw["ece"], 100, 1),
            _cell(raw["nll"], 1, 3),
            _cell(raw["brier"], 1, 3), f"{row.ranks['raw']:.1f}",
            _cell(after["ece"], 100, 1), _cell(after["nll"], 1, 3),
            f"{row.train_seconds:.1f}", "" if row.score_ratio is None else f"{row.score_ratio:.2f}",
        ]  # fmt: skip
        lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_calibrators(name: str, rows: Sequence[MethodRow]) -> str:
    """Return ECE and NLL after each calibrator, the best of a line in bold."""
    stages = list(rows[0].stages)
    lines = [f"\n{name}: ECE % / NLL after each calibrator, mean over seeds\n", f"| method | {' | '.join(stages)} |"]
    lines.append("|---" * (len(stages) + 1) + "|")
    for row in rows:
        figures = {
            stage: (f"{100 * row.stages[stage]['ece'].mean:.1f}", f"{row.stages[stage]['nll'].mean:.3f}")
            for stage in stages
        }
        best = [min(float(figures[stage][place]) for stage in stages) for place in (0, 1)]
        cells = [
            " / ".join(f"**{text}**" if float(text) == low else text for text, low in zip(pair, best, strict=True))
            for pair in figures.values()
        ]
        lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short(line: Mapping[str, str]) -> dict[str, str]:
    """Return a line of cells.csv with only the columns that the benchmark's file needs."""
    kept = {}
    for key, value in line.items():
        metric, _, end = key.rpartition("_")
        if (end not in ("low", "high") or metric in BOUNDED) and key not in ("n_train", "n_calibration"):
            kept[key] = f"{float(value):.4g}" if "." in value else value
    return kept


def _cell(mean: object, scale: float, digits: int) -> str:
    text = f"{scale * mean.mean:.{digits}f} ± {scale * mean.std:.{digits}f}"
    return {1: f"**{text}**", 2: f"_{text}_"}.get(mean.place, text)


if __name__ == "__main__":
    main()
