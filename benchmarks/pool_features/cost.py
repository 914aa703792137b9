"""Benchmark: processor time and memory of pool features, for a pool of random clusters.

    OMP_NUM_THREADS=1 python benchmarks/pool_features/cost.py --images 20000 --features 1280 --labels 400 --nodes 50000

Prints the seconds of the graph's fit, which happens once, and those of a round (training and scoring) with and without
smoothed heads. The pool is scored twice: images outside the graph (with --images above --nodes) are linked to it the
first time. All are processor seconds of this process, in one run.

With --placing, it prints only what an image outside the graph costs, with and without kept links, in alternation. The
graph consists of random numbers, so it need not be fitted.
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
import torch

from alloop.config.schema import Config, ModelConfig, ProjectConfig
from alloop.engine.build import build_backbone
from alloop.engine.jobs import ScoreJob, TrainJob
from alloop.engine.score import run_score
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.pool.cache import FeatureCache
from alloop.records import ImageRef
from alloop.smoothing.smoothing import AXES, MOST_NODES, PARTS, Smoothing, choose_nodes

CLASSES = 10
HOLDOUT = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--nodes", type=int, default=MOST_NODES)
    parser.add_argument("--placing", action="store_true")
    options = parser.parse_args()
    if options.placing:
        measure_placing(options.nodes, options.features)
        return
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


def measure_placing(n_nodes: int, n_features: int, n_images: int = 1024) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) - 0.5

    smoothing = Smoothing(
        keys=tuple(hashlib.sha256(str(row).encode()).hexdigest() for row in range(n_nodes)),
        mean=torch.zeros(n_features, dtype=torch.float64),
        axes=drawn(n_features, AXES),
        least=torch.tensor(0.0, dtype=torch.float64),
        metric=torch.eye(AXES),
        spread=torch.eye(AXES),
        places=torch.nn.functional.normalize(drawn(n_nodes, AXES)),
        widths=torch.ones(n_nodes),
        rows=drawn(n_nodes, PARTS * AXES),
        centers=torch.zeros(PARTS * AXES),
        scales=torch.ones(PARTS),
    )
    features, keys = drawn(n_images, n_features), ["f" * 64] * n_images
    for _ in range(3):
        anew, rows = seconds(lambda: smoothing.transform(keys, features))
        linking, links = seconds(lambda: smoothing.link(features))
        known, same = seconds(lambda links=links: smoothing.transform(keys, features, links))
        assert torch.equal(rows, same)
        each = [f"{1000 * one / n_images:.3f} ms" for one in (anew, linking, known)]
        print(f"{n_nodes} nodes, an image: placed anew {each[0]}; linked once {each[1]}, then {each[2]}", flush=True)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


if __name__ == "__main__":
    main()
