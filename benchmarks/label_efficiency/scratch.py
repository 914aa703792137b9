"""Strategies with a small network trained from scratch on Fashion-MNIST, by `alloop simulate` on image files.

    python benchmarks/label_efficiency/scratch.py --work FOLDER

The network is that of benchmarks/calibration/scratch.py (72,000 weights). Every round trains it anew, from the same
random weights. FOLDER keeps images and finished runs.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CALIBRATION = Path(__file__).parents[1] / "calibration"
sys.path.insert(0, str(CALIBRATION))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--strategies", default="random,default,entropy,margin,badge")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool", type=int, default=4_000)
    parser.add_argument("--test", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=1e6)
    options = parser.parse_args()
    work = options.work.absolute()
    train, test = write_tables(work / "fashion-mnist-files", options.pool, options.test)
    settings = {
        "model.backbone": "scratch:small_network", "model.weights": "none", "model.mode": "finetune",
        "train.workers": 0, "train.epochs": options.epochs, "train.patience": options.epochs,
        "train.batch_size": 64, "train.learning_rate": 1e-2,
    }  # fmt: skip
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [
        sys.executable, "-m", "alloop", "simulate", "--csv", str(train), "--test", str(test), *given,
        "--strategies", options.strategies, "--seeds", str(options.seeds), "--batch", str(options.batch),
        "--rounds", str(options.rounds), "--jobs", "1", "--budget-minutes", str(options.minutes),
        "--out", str(work / "scratch"), "--json-out", str(work / "scratch.json"),
    ]  # fmt: skip
    paths = os.pathsep.join([str(CALIBRATION), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": paths}, check=True)
    write_csv(json.loads((work / "scratch.json").read_bytes())["runs"], options.batch)


def write_csv(runs: list[dict[str, Any]], batch: int) -> None:
    """Write the accuracies of every run to scratch.csv beside this script."""
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        n_rounds = max(len(run["accuracy"]) for run in runs)
        writer.writerow(["strategy", "seed", *(f"after_{batch * number}" for number in range(1, n_rounds + 1))])
        writer.writerows([run["strategy"], run["seed"], *run["accuracy"]] for run in runs)


def write_tables(folder: Path, n_pool: int, n_test: int) -> tuple[Path, Path]:
    """Write the first images of both parts as files, with tables of their labels."""
    import data

    images = data.unpack(
        {"train": data.read_fashion("train", n_pool), "test": data.read_fashion("test", n_test)}, folder
    )
    paths = []
    for part in ("train", "test"):
        paths.append(folder / f"{part}.csv")
        with paths[-1].open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["file", "label"])
            writer.writerows((images.images[i].path, images.labels[i]) for i in images.positions(part))
    return paths[0], paths[1]


if __name__ == "__main__":
    main()
