"""Benchmark 4: cost of scoring with 4 heads instead of 1, with 20 dropout passes instead of 1, and with ODIN.

    ALLOOP_DATA=... python benchmarks/calibration/cost.py --work FOLDER

Everything runs in one process on TrashNet. Each repetition scores the same images with every model in turn by a
ScoreJob, from JPEG to score file (the trunk included), with nothing cached, in one thread. Ratios compare the medians
of CPU time, which other work on the machine hardly changes; the range is that of single repetitions. Wall time is in
the file, too. The model with one dropout pass has the weights of the one with 20, and another number of passes in its
description. ODIN takes part in the first two repetitions only: it takes so much longer that noise does not matter.
"""

import argparse
import csv
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import data
import numpy as np
import torch
from frozen import N_LABELS, make_config

from alloop.config.load import set_values
from alloop.engine.executor_local import LocalExecutor
from alloop.engine.jobs import ScoreJob, TrainJob
from alloop.engine.settings import EngineSettings
from alloop.files import sha256_of, write_json
from alloop.records import MODEL_METADATA, ModelFiles
from alloop.simulate.methods import apply_method, find_methods

ODIN = ("SL1H ODIN", "4HML ODIN")
ONE_PASS = "MC-dropout, 1 pass"
PAIRS = (
    ("4HML", "SL1H", "≤ 1.05"),
    ("MC-dropout", ONE_PASS, "≤ 1.3"),
    ("MC-dropout", "SL1H", ""),
    ("SL1H ODIN", "SL1H", ""),
    ("4HML ODIN", "4HML", ""),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cost.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds = measure(options.work, options.images, options.repetitions)
    lines = [
        {
            "method": name,
            "repetition": n,
            "images": options.images,
            "cpu_seconds": f"{c:.4f}",
            "wall_seconds": f"{w:.4f}",
        }
        for name, values in seconds.items()
        for n, (c, w) in enumerate(values)
    ]
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print("| ratio of scoring time | of medians | lowest to highest of a repetition | wanted |\n|---|---|---|---|")
    for name, base, limit in PAIRS:
        mine, its = [cpu for cpu, _ in seconds[name]], [cpu for cpu, _ in seconds[base]]
        ratio = statistics.median(mine) / statistics.median(its)
        single = [one / other for one, other in zip(mine, its, strict=False)]
        print(f"| {name} / {base} | {ratio:.3f} | {min(single):.3f} to {max(single):.3f} | {limit} |")


def measure(work: Path, n_images: int, repetitions: int) -> dict[str, list[tuple[float, float]]]:
    """Return (CPU, wall) seconds of every repetition, by method."""
    images = data.load("trashnet", work)
    base = set_values(make_config(images.classes, None), train={"workers": 0})  # fewer processes, steadier clocks
    order = np.random.default_rng(0).permutation(len(images.images))
    train, scored = order[:N_LABELS], tuple(images.images[p] for p in order[N_LABELS : N_LABELS + n_images])
    executor = LocalExecutor()
    jobs = {}
    for method in find_methods(base, ("SL1H", "4HML", "MC-dropout")):
        config = apply_method(base, method)
        out = Path(tempfile.mkdtemp(dir=work))
        targets = tuple(images.classes.index(images.labels[p]) for p in train)
        refs = tuple(images.images[p] for p in train)
        job = TrainJob(
            EngineSettings.of(config), images.classes, refs, targets, (), (), 1, work / "cache", out / "model"
        )
        jobs[method.name] = (config, executor.submit(job).files, out)
        if f"{method.name} ODIN" in ODIN:
            jobs[f"{method.name} ODIN"] = (
                set_values(config, acquisition={"ood_score": "odin"}),
                *jobs[method.name][1:],
            )
    config, model, out = jobs["MC-dropout"]
    jobs[ONE_PASS] = (config, with_one_pass(model, out / "one-pass"), out)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for repetition in range(-1, repetitions):  # the first is a warm-up
        for name, (config, model, out) in jobs.items():
            if name in ODIN and repetition not in (0, 1):
                continue
            empty = out / f"cache-{repetition}"
            started = time.process_time()
            result = executor.submit(ScoreJob(EngineSettings.of(config), model, scored, empty, out / "scores.parquet"))
            cpu = time.process_time() - started
            assert result.n_images == n_images
            shutil.rmtree(empty)
            if repetition >= 0:
                seconds[name].append((cpu, result.seconds))
    for _, _, out in jobs.values():
        shutil.rmtree(out, ignore_errors=True)
    return seconds


def with_one_pass(model: ModelFiles, out: Path) -> ModelFiles:
    """Return the same weights with a single dropout pass."""
    shutil.copytree(model.folder, out)
    metadata = json.loads((out / MODEL_METADATA).read_text())
    metadata["config"]["model"]["members"] = 1
    write_json(out / MODEL_METADATA, metadata)
    return ModelFiles(out, sha256_of(out / MODEL_METADATA))


if __name__ == "__main__":
    main()
