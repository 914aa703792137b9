"""Part D: methods from scratch on CIFAR-10 with a small ResNet.

The most important methods come first, and as many run as the time allows. Each row has accuracy, NLL and ECE on test
images, before and after a temperature, and the AUROC of the maximum probability against TrashNet's photos.
"""

import json
import os
from pathlib import Path

import numpy as np
from networks import small_resnet, tiny_resnet
from pictures import Pictures, load
from rows import Options, Rows, parse

from alloop.config.schema import Config
from alloop.engine.executor_local import LocalExecutor
from alloop.records import ImageRef
from alloop.simulate.compare import CompareSettings, compare, read_cell
from alloop.simulate.labeled import LabeledImages, Parts
from alloop.simulate.methods import Method, find_method

EPOCHS, SEEDS = 15, 2
MSP = "MSP"


def main() -> None:
    options = parse(__doc__)
    rows = Rows(options.out, "D")
    cifar, photos = load("cifar10", options), load("trashnet", options)
    strangers = number_after(photos.refs, len(cifar.refs))
    ensemble = Method("ensemble-4", "four single-head models", {"model": {"uncertainty": "ensemble", "members": 4}})
    methods = (find_method("SL1H"), find_method("4HML"), find_method("LogitNorm"), ensemble)
    settings = CompareSettings(
        config=make_config(cifar, options),
        methods=methods,
        seeds=options.size(SEEDS, 1),
        out=options.work / "paper",
        cache=options.work / "paper-cache",
        minutes=options.seconds / 60 * 0.75,  # a cell starts only if it can end in time
        device=str(options.device),
        strangers=strangers,
        odin_images=0,
        draws=options.size(200, 20),
    )
    targets = np.array([cifar.classes.index(label) for label in cifar.labels])
    labeled = LabeledImages(cifar.classes, cifar.refs, targets)
    reported: set[Path] = set()

    def progress(label: str, done: int, total: int) -> None:
        if label == "methods × seeds":
            report_new(settings.out / "cells", reported, rows)

    comparison = compare(settings, labeled, LocalExecutor(), progress, lambda seed: draw_parts(cifar, options, seed))
    for name, seed in comparison.missing:
        rows.add(f"{name}, seed {seed}", "accuracy", None, "%", "no time was left")
    for name, seed, why in comparison.failed:
        rows.add(f"{name}, seed {seed}", "failed", "ModelError", note=why[:300])


def make_config(cifar: Pictures, options: Options) -> Config:
    trunk = tiny_resnet if options.tiny else small_resnet
    epochs = options.size(EPOCHS, 1)
    return Config.model_validate(
        {
            "project": {"classes": cifar.classes},
            "model": {"backbone": f"networks:{trunk.__name__}", "weights": "none", "mode": "finetune"},
            # The trunk's learning rate is a tenth of the heads'.
            "train": {
                "workers": options.size(min(8, os.cpu_count() or 1), 0),
                "epochs": epochs,
                "patience": epochs,
                "batch_size": options.size(128, 16),
                "learning_rate": 1e-2,
            },
        }
    )


def number_after(refs: tuple[ImageRef, ...], n: int) -> tuple[ImageRef, ...]:
    return tuple(ImageRef(n + place, ref.sha256, ref.path) for place, ref in enumerate(refs, start=1))


def draw_parts(cifar: Pictures, options: Options, seed: int) -> Parts:
    """Draw labels and images for the temperature from the training table; the test images are always all of them."""
    is_train = np.array([table == "train.csv" for table in cifar.tables])
    pool = np.flatnonzero(is_train)
    order = pool[np.random.default_rng(seed).permutation(len(pool))]
    n = len(order) - options.size(1_000, 20)
    return Parts(order[:n], order[n:], np.flatnonzero(~is_train))


def report_new(folder: Path, reported: set[Path], rows: Rows) -> None:
    for path in sorted(set(folder.glob("*.json")) - reported, key=lambda path: path.stat().st_mtime):
        reported.add(path)
        cell = read_cell(path)
        if cell is None:
            continue
        item = f"{cell.method}, seed {cell.seed}"
        for name, unit, factor in (("accuracy", "%", 100), ("nll", "nats", 1), ("ece", "%", 100)):
            stages = {stage: found.metrics[name] * factor for stage, found in cell.stages.items()}
            note = ", ".join(f"{value:.4g} after {stage}" for stage, value in stages.items() if stage != "raw")
            rows.add(item, name, stages["raw"], unit, note)
        aurocs = {name: score.metrics["auroc"] * 100 for name, score in cell.ood.items()}
        others = ", ".join(f"{name} {value:.1f}" for name, value in aurocs.items() if name != MSP)
        rows.add(item, "OOD AUROC", aurocs.get(MSP), "%", f"by {MSP}; {others}")
        rows.add(item, "training", cell.train_seconds, "s", json.dumps({"labels": cell.n_train, "test": cell.n_test}))


if __name__ == "__main__":
    main()
