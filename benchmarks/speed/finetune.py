"""Fine-tuning on the CPU: alloop before and now, in CPU time, and whether its models predict as well.

    ALLOOP_DATA=DATA python benchmarks/speed/finetune.py --before OLD      # CPU time, on photos of TrashNet
    python benchmarks/speed/finetune.py --before OLD --accuracy            # accuracy and NLL, on scikit-learn's digits

CPU time: 85 training photos and 15 watched ones, EfficientNet-Lite0 at 64 pixels, 5 epochs, on one core. Accuracy: for
every seed 150 labeled digits and 500 others to measure on, a small network from scratch, 12 epochs. Both versions get
the same images. This version draws other views, so that models differ; the mean difference over seeds counts.
"""

import argparse
import csv
import hashlib
import io
import os
import statistics
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sides import HERE, Figures, compare_versions, cpu_seconds, measure, report, table
from torch import nn

N_SEEDS = 8
T_95 = 2.36  # quantile of Student's t for the interval of N_SEEDS differences
Labeled = list[tuple[bytes, str]]  # file and label of each image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="OLD", help="checkout of an older alloop")
    parser.add_argument("--accuracy", action="store_true", help="compare accuracy and NLL instead of times")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        report(measure_accuracy() if options.accuracy else measure_time())
    elif options.before is None:
        parser.error("name an older checkout: --before OLD")
    elif options.accuracy:
        compare_accuracy(options.before.resolve())
    else:
        print(table(*compare_versions(options.before, __file__, repeats=options.repeats), {}, unit="s"))


def compare_accuracy(before: Path) -> None:
    old, new = (measure(side, __file__, ["--accuracy"]) for side in (before, HERE))
    print(f"| over {N_SEEDS} seeds | before | now | difference, 95 % interval |\n|---|---|---|---|")
    for name in ("accuracy, %", "NLL, nats"):
        one, other = ([side[f"{name} {seed}"] for seed in range(N_SEEDS)] for side in (old, new))
        means = f"{statistics.mean(one):.3g} | {statistics.mean(other):.3g}"
        print(f"| {name} | {means} | {interval([b - a for a, b in zip(one, other, strict=True)])} |")


def interval(differences: Sequence[float]) -> str:
    half = T_95 * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.2g} ± {half:.2g}"


def measure_time() -> Figures:
    from alloop.engine import train as training

    finetune, spent = training.finetune, [0.0]

    def timed(*arguments):  # type: ignore[no-untyped-def]
        started = cpu_seconds()
        history = finetune(*arguments)
        spent[0] = cpu_seconds() - started
        return history

    training.finetune = timed
    os.chdir(HERE / "examples" / "trashnet")  # where the trunk's factory is
    model = {"backbone": "backbone:efficientnet_lite0", "image_size": 64}
    started = cpu_seconds()
    train(read_photos(110), 100, model, {"epochs": 5, "batch_size": 16}, seed=0)
    return {"fine-tuning, without its start": spent[0], "the whole training job": cpu_seconds() - started}


def measure_accuracy() -> Figures:
    figures = {}
    for seed in range(N_SEEDS):
        model, recipe = {"backbone": "finetune:small_trunk", "weights": "none"}, {"epochs": 12, "batch_size": 16}
        log_probs, truth = train(read_digits(seed, 650), 150, model, {**recipe, "learning_rate": 0.01}, seed)
        figures[f"accuracy, % {seed}"] = float((log_probs.argmax(axis=1) == truth).mean() * 100)
        figures[f"NLL, nats {seed}"] = float(-log_probs[np.arange(len(truth)), truth].mean())
    return figures


def small_trunk():  # type: ignore[no-untyped-def]
    from alloop.models.backbones import Backbone

    layers: list[nn.Module] = []
    for n_in, n_out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(), nn.MaxPool2d(2)]
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone(trunk, n_features=64, image_size=16, resize=0)


def train(labeled: Labeled, n_train: int, model: dict, recipe: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fine-tune on the first images. Return uncalibrated log-probabilities of the others, and their classes."""
    from alloop.config.schema import Config
    from alloop.engine.jobs import TrainJob
    from alloop.engine.settings import EngineSettings
    from alloop.engine.train import run_train
    from alloop.records import ImageRef

    classes = tuple(sorted({label for _, label in labeled}))
    targets = tuple(classes.index(label) for _, label in labeled)
    settings = {"mode": "finetune", "device": "cpu", **model}
    config = Config.model_validate(
        {"project": {"classes": classes}, "model": settings, "train": {"workers": 0, **recipe}}
    )
    with tempfile.TemporaryDirectory() as folder:
        refs = []
        for number, (data, _) in enumerate(labeled):
            path = Path(folder) / f"{number}.image"
            path.write_bytes(data)
            refs.append(ImageRef(number + 1, hashlib.sha256(data).hexdigest(), str(path)))
        job = TrainJob(
            settings=EngineSettings.of(config),
            classes=classes,
            images=tuple(refs[:n_train]),
            targets=targets[:n_train],
            holdout=tuple(refs[n_train:]),
            holdout_targets=targets[n_train:],
            seed=seed,
            cache=Path(folder) / "cache",
            out=Path(folder) / "model",
        )
        return run_train(job).holdout_pooled_log_probs, np.array(targets[n_train:])


def read_photos(n: int) -> Labeled:
    with zipfile.ZipFile(Path(os.environ["ALLOOP_DATA"]) / "trashnet.zip") as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("labels.csv"), encoding="utf-8")))
        chosen = np.random.default_rng(0).permutation(len(rows))[:n].tolist()
        return [(archive.read(rows[number]["file"]), rows[number]["label"]) for number in chosen]


def read_digits(seed: int, n: int) -> Labeled:
    from sklearn.datasets import load_digits

    digits, labeled = load_digits(), []
    for number in np.random.default_rng(seed).permutation(len(digits.target))[:n].tolist():
        buffer = io.BytesIO()
        Image.fromarray((digits.images[number] * 15).astype(np.uint8)).save(buffer, "PNG")
        labeled.append((buffer.getvalue(), str(digits.target[number])))
    return labeled


if __name__ == "__main__":
    main()
