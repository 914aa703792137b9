"""Fine-tuning against frozen features on TrashNet, same backbone, image size and labels.

    ALLOOP_DATA=... python benchmarks/recipe/finetune.py [--labels 400] [--size 96] [--rates 1e-4 3e-4] [--epochs 20]

EfficientNet-Lite0; the temperature is fitted to 200 random images, the model to `--labels` others, and 1,000 others
measure it.
"""

import argparse
import csv
import os
import random
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from alloop.config.load import validate_config
from alloop.engine.executor_local import LocalExecutor
from alloop.engine.jobs import ScoreJob, TrainJob
from alloop.engine.score_file import read_log_probs
from alloop.engine.settings import EngineSettings
from alloop.evaluation.intervals import statistics_of
from alloop.evaluation.metrics import accuracy
from alloop.files import sha256_of
from alloop.records import ImageRef

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ALLOOP_DATA", ROOT.parent / "shared" / "data"))
sys.path.insert(0, str(ROOT / "examples" / "trashnet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rates", type=float, nargs="*", default=[])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pairs = unpack(Path(scratch), options.seed)
        runs = [("frozen", {}), ("finetune", {"epochs": options.epochs})]
        runs += [("finetune", {"epochs": options.epochs, "learning_rate": rate}) for rate in options.rates]
        for mode, train in runs:
            print(measured(Path(scratch), pairs, mode, train, options), flush=True)


def unpack(scratch: Path, seed: int) -> list[tuple[ImageRef, str]]:
    with zipfile.ZipFile(DATA / "trashnet.zip") as packed:
        rows = list(csv.DictReader(packed.read("labels.csv").decode().splitlines()))
        packed.extractall(scratch)
    paths = [(scratch / row["file"], row["label"]) for row in rows]
    random.Random(seed).shuffle(paths)
    return [(ImageRef(n, sha256_of(path), str(path)), label) for n, (path, label) in enumerate(paths)]


def measured(scratch: Path, pairs: list, mode: str, train: dict, options: argparse.Namespace) -> dict:
    classes = tuple(sorted({label for _, label in pairs}))
    refs, targets = [ref for ref, _ in pairs], [classes.index(label) for _, label in pairs]
    model = {"backbone": "backbone:efficientnet_lite0", "weights": "none", "mode": mode, "image_size": options.size}
    config = validate_config({"project": {"classes": classes}, "model": model, "train": train}, "benchmark")
    end = 200 + options.labels
    job = TrainJob(
        settings=EngineSettings.of(config),
        classes=classes,
        images=tuple(refs[200:end]),
        targets=tuple(targets[200:end]),
        holdout=tuple(refs[:200]),
        holdout_targets=tuple(targets[:200]),
        seed=options.seed,
        cache=scratch / "cache",
        out=scratch / f"{mode}-{len(train)}-{train.get('learning_rate')}",
    )
    started = time.perf_counter()
    trained = LocalExecutor().submit(job)
    seconds = time.perf_counter() - started
    rest = tuple(refs[end : end + 1000])
    score = ScoreJob(EngineSettings.of(config), trained.files, rest, job.cache, job.out.with_suffix(".parquet"))
    parts = list(read_log_probs(LocalExecutor().submit(score).path))
    log_probs = np.concatenate([rows.numpy() for _, rows in parts])
    truth = np.array([targets[ref.image_id] for ref in rest])
    found = measure(log_probs, truth)
    shown = {key: round(value, 4) for key, value in found.items()}
    history = {key: value for key, value in trained.history.items() if key in ("best_epoch", "epochs", "stopped")}
    return {"mode": mode, **train, **shown, "temperature": round(trained.calibration.temperature, 3), **history,
            "train_seconds": round(seconds)}  # fmt: skip


def measure(log_probs, targets) -> dict[str, float]:
    """Return accuracy, NLL and ECE."""
    statistics, whole = statistics_of(log_probs, targets), np.ones((1, len(targets)))
    found = {name: float(statistics[name](whole)[0]) for name in ("nll", "ece")}
    return {"accuracy": accuracy(np.exp(log_probs), targets), **found}


if __name__ == "__main__":
    main()
