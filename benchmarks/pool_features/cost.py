"""Benchmark: processor time and memory of pool features, for a pool of random clusters.

    OMP_NUM_THREADS=1 python benchmarks/pool_features/cost.py --images 20000 --features 1280 --labels 400 --nodes 50000

Prints the seconds of the graph's fit, which happens once, and those of a round (training and scoring) with and without
smoothed heads. The pool is scored twice: images outside the graph (with --images above --nodes) are linked to it the
first time. All are processor seconds of this process, in one run. Another process makes the features before, so they
are not in the memory that is printed.

    OMP_NUM_THREADS=2 python benchmarks/pool_features/cost.py --target --images 1000000 --folder FOLDER

With --target, it prints what a large pool costs, in seconds on the clock: the first training, which fits the graph, and
the first scoring, which places all other images; and whether the target is met. FOLDER needs 6 KB an image and is
emptied at the end.

With --placing, it prints only what an image outside the graph costs, with and without kept links, in alternation. The
graph consists of random numbers, so it need not be fitted.
"""

import argparse
import dataclasses
import functools
import hashlib
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

from alloop.config.schema import Config, ModelConfig, ProjectConfig
from alloop.engine.build import build_backbone
from alloop.engine.jobs import ScoreJob, TrainJob
from alloop.engine.score import run_score
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.pool.cache import FeatureCache
from alloop.records import ImageRef, ModelFiles
from alloop.smoothing.smoothing import AXES, MOST_NODES, PARTS, Smoothing, choose_nodes

CLASSES = 10
HOLDOUT = 200
AT_ONCE = 8192  # images whose features are made at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--nodes", type=int, default=MOST_NODES)
    parser.add_argument("--placing", action="store_true")
    parser.add_argument("--target", action="store_true")
    parser.add_argument("--folder", type=Path, help="where a temporary folder is made")
    options = parser.parse_args()
    if options.placing:
        measure_placing(options.nodes, options.features)
        return
    few = functools.partial(choose_nodes, most=options.nodes)
    most = mock.patch("alloop.engine.pool_features.choose_nodes", few)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, most:
        pool = Pool(Path(folder), options.images, options.features, options.labels)
        filling = multiprocessing.get_context("spawn").Process(target=pool.fill)
        filling.start()
        filling.join()
        if filling.exitcode != 0:
            raise SystemExit("The features could not be made.")
        if options.target:
            measure_target(pool)
        else:
            measure(pool)
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


@dataclasses.dataclass(frozen=True)
class Pool:
    """Images without files: only their features exist, in the cache of a folder."""

    folder: Path
    n_images: int
    n_features: int
    n_labels: int

    def fill(self) -> None:
        """Make the features, a part at a time: random clusters, one for each class."""
        generator = np.random.default_rng(1)
        centers = generator.standard_normal((CLASSES, self.n_features), dtype=np.float32)
        fingerprint = build_backbone(self.settings("off")).fingerprint()
        cache, targets = FeatureCache(self.folder / "features", fingerprint, self.n_features), self.targets
        for start in range(0, self.n_images, AT_ONCE):
            part = range(start, min(start + AT_ONCE, self.n_images))
            noise = generator.standard_normal((len(part), self.n_features), dtype=np.float32)
            cache.add([_key(row) for row in part], centers[targets[part]] + 3 * noise)

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        return np.random.default_rng(0).integers(CLASSES, size=self.n_images)

    def settings(self, pool_features: Literal["auto", "off"]) -> EngineSettings:
        return EngineSettings.of(
            Config(
                project=ProjectConfig(classes=tuple(f"class {k}" for k in range(CLASSES))),
                model=ModelConfig(backbone=f"features:{self.n_features}", weights="none", pool_features=pool_features),
            )
        )

    def jobs(self, pool_features: Literal["auto", "off"]) -> tuple[TrainJob, Callable[[ModelFiles], ScoreJob]]:
        """Return the job that trains, and the one that scores all unlabeled images with what it made."""
        refs = [ImageRef(row, _key(row), f"{row}") for row in range(self.n_images)]
        settings, end = self.settings(pool_features), self.n_labels + HOLDOUT
        targets = self.targets[:end].tolist()
        train = TrainJob(
            settings=settings,
            classes=tuple(f"class {k}" for k in range(CLASSES)),
            images=tuple(refs[: self.n_labels]),
            targets=tuple(targets[: self.n_labels]),
            holdout=tuple(refs[self.n_labels : end]),
            holdout_targets=tuple(targets[self.n_labels :]),
            seed=0,
            cache=self.folder,
            out=self.folder / pool_features,
            pool=tuple(refs),
        )
        out = self.folder / f"{pool_features}.parquet"
        return train, lambda files: ScoreJob(settings, files, tuple(refs[end:]), self.folder, out)


def measure_target(pool: Pool) -> None:
    train, score = pool.jobs("auto")
    started = time.perf_counter()
    trained = run_train(train)
    middle = time.perf_counter()
    run_score(score(trained.files))
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    nodes = trained.history["pool_features"]["n_nodes"]
    print(
        f"{pool.n_images} images, {nodes} nodes, {torch.get_num_threads()} threads: training {middle - started:.0f} s, "
        f"scoring {end - middle:.0f} s on the clock, {time.process_time():.0f} s of the processor"
    )
    for name, found, most, unit in (("time", (end - started) / 60, 15, "minutes"), ("memory", peak, 3, "GiB")):
        print(f"target of {name}: {found:.1f} of {most} {unit}: {'met' if found <= most else 'missed'}", flush=True)


def measure(pool: Pool) -> None:
    for name in ("off", "auto"):
        job, scoring = pool.jobs(name)
        first, trained = seconds(lambda job=job: run_train(job))
        again = dataclasses.replace(job, pool_before=trained.files.folder, out=pool.folder / f"{name}-next")
        second, trained = seconds(lambda job=again: run_train(job))
        third, _ = seconds(lambda job=again: run_train(job))
        score = scoring(trained.files)
        scored, before = seconds(lambda job=score: run_score(job))
        scored_again, after = seconds(lambda job=score: run_score(job))
        assert before.sha256 == after.sha256
        print(
            f"{name}: first training {first:.1f} s, later training {second:.1f} s, once more in the same "
            f"process {third:.1f} s, scoring {scored:.1f} s, scoring again {scored_again:.1f} s",
            flush=True,
        )


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


def _key(row: int) -> str:
    return hashlib.sha256(str(row).encode()).hexdigest()


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


if __name__ == "__main__":
    main()
