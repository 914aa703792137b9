"""Benchmark: processor time and memory of pool features, for a pool of random clusters.

    OMP_NUM_THREADS=1 python benchmarks/pool_features/cost.py --images 20000 --features 1280 --labels 400 --nodes 50000

Prints the seconds of the graph's fit, which happens once, and those of a round (training and scoring) with and without
smoothed heads. The pool is scored twice: images outside the graph (with --images above --nodes) are linked to it the
first time. All are processor seconds of this process, in one run.
"""

import argparse
import dataclasses
import functools
import hashlib
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from alloop.config.schema import Config, ModelConfig, ProjectConfig
from alloop.engine.build import build_backbone
from alloop.engine.jobs import ScoreJob, TrainJob
from alloop.engine.score import run_score
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.pool.cache import FeatureCache
from alloop.records import ImageRef
from alloop.smoothing.smoothing import MOST_NODES, choose_nodes

CLASSES = 10
HOLDOUT = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--nodes", type=int, default=MOST_NODES)
    options = parser.parse_args()
    few = functools.partial(choose_nodes, most=options.nodes)
    with tempfile.TemporaryDirectory() as folder, mock.patch("alloop.engine.pool_features.choose_nodes", few):
        measure(Path(folder), options.images, options.features, options.labels)


def measure(folder: Path, n: int, n_features: int, n_labels: int) -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(CLASSES, size=n)
    centers = generator.normal(size=(CLASSES, n_features))
    rows = (centers[targets] + 3 * generator.normal(size=(n, n_features))).astype(np.float32)
    refs = [ImageRef(i, hashlib.sha256(str(i).encode()).hexdigest(), f"{i}") for i in range(n)]
    for name in ("off", "auto"):
        settings = EngineSettings.of(
            Config(
                project=ProjectConfig(classes=tuple(f"class {k}" for k in range(CLASSES))),
                model=ModelConfig(backbone=f"features:{n_features}", weights="none", pool_features=name),
            )
        )
        backbone = build_backbone(settings)
        FeatureCache(folder / "features", backbone.fingerprint(), n_features).add([ref.sha256 for ref in refs], rows)
        job = TrainJob(
            settings=settings,
            classes=tuple(f"class {k}" for k in range(CLASSES)),
            images=tuple(refs[:n_labels]),
            targets=tuple(targets[:n_labels].tolist()),
            holdout=tuple(refs[n_labels : n_labels + HOLDOUT]),
            holdout_targets=tuple(targets[n_labels : n_labels + HOLDOUT].tolist()),
            seed=0,
            cache=folder,
            out=folder / name,
            pool=tuple(refs),
        )
        first, trained = seconds(lambda job=job: run_train(job))
        again = dataclasses.replace(job, pool_before=trained.files.folder, out=folder / f"{name}-next")
        second, trained = seconds(lambda job=again: run_train(job))
        third, _ = seconds(lambda job=again: run_train(job))
        score = ScoreJob(settings, trained.files, tuple(refs[n_labels + HOLDOUT :]), folder, folder / f"{name}.parquet")
        scored, before = seconds(lambda job=score: run_score(job))
        scored_again, after = seconds(lambda job=score: run_score(job))
        assert before.sha256 == after.sha256
        print(
            f"{name}: first training {first:.1f} s, later training {second:.1f} s, once more in the same "
            f"process {third:.1f} s, scoring {scored:.1f} s, scoring again {scored_again:.1f} s",
            flush=True,
        )
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


if __name__ == "__main__":
    main()
