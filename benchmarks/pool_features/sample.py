"""What a sample of the pool as nodes loses: all training images of CIFAR-10 as the graph, or two fifths, or one fifth.

    ALLOOP_DATA=... python benchmarks/pool_features/sample.py --work FOLDER --train 50000

Images outside the graph are placed. Heads are fitted to random labels, which are nodes in every graph, and measured on
the test images and on all unlabeled images of the pool. FOLDER keeps features and finished lines.
"""

import argparse
import hashlib
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from gains import write_lines
from run import N_HOLDOUT, fit
from scenes import data
from sets import IMAGE_SIZES, OWN_TEST, save_features
from torch import Tensor

from alloop.calibration.temperature import fit_temperature
from alloop.engine.build import HEAD_DECAY, SMOOTHED_DECAY
from alloop.files import write_bytes
from alloop.smoothing.smoothing import Smoothing, choose_nodes, fit_smoothing

N_TEST = 10_000
SHARES = (1.0, 0.4, 0.2)  # of the pool in the graph
BUDGETS, SEEDS = (40, 160, 640), 3
PLACED = 100_000  # rows whose time is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", type=int, default=50_000, help="images of the pool; 20000 or 50000")
    parser.add_argument("--extract", action="store_true", help="only extract the features")
    options = parser.parse_args()
    path = options.work / ("cifar10.npz" if options.train == OWN_TEST["cifar10"][0] else f"cifar10-{options.train}.npz")
    if not path.exists():
        images = data.load("cifar10", options.work, N_TEST, options.train)
        save_features(images, IMAGE_SIZES["cifar10"], options.work, path)
    if options.extract:
        return
    with np.load(path) as arrays:
        F, y, part = (arrays[name] for name in ("F", "y", "part"))
    bench = Bench(*(torch.from_numpy(rows[part == name]) for name in ("train", "test") for rows in (F, y)))
    lines: list[dict[str, object]] = []
    for seed in range(SEEDS):
        for share in (0.0, *SHARES):  # 0: raw features
            nodes = round(share * len(bench.pool))
            kept = options.work / "pool-features" / f"sample-{options.train}-{nodes}-{seed}.json"
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(kept, json.dumps(bench.measure(nodes, seed)).encode())
            lines += json.loads(kept.read_text())
    write_lines(lines, Path(__file__).with_name(f"sample-{options.train}.csv"))
    print(markdown(lines))


class Bench:
    """Pool, measured images, and the graph that serves all seeds."""

    def __init__(self, pool: Tensor, y: Tensor, test: Tensor, y_test: Tensor) -> None:
        self.pool, self.y, self.test, self.y_test = pool, y, test, y_test
        self.keys = [hashlib.sha256(f"{row}".encode()).hexdigest() for row in range(len(pool))]
        self._whole: tuple[Tensor, Tensor] | None = None

    def measure(self, n_nodes: int, seed: int) -> list[dict[str, object]]:
        order = np.random.default_rng([seed, 3]).permutation(len(self.pool))
        holdout, rest = order[:N_HOLDOUT], order[N_HOLDOUT:]
        pool, test = self._features(n_nodes, rest[: max(BUDGETS)], is_timed=seed == 0)
        decay = SMOOTHED_DECAY if n_nodes else HEAD_DECAY
        lines = []
        for n in BUDGETS:
            rows = rest[:n]
            predict = fit(pool[rows], self.y[rows], 10, decay, seed)
            temperature, _ = fit_temperature(predict(pool[holdout]), self.y[holdout])
            line: dict[str, object] = {"nodes": n_nodes, "seed": seed, "labels": n}
            for name, features, y in (("test", test, self.y_test), ("pool", pool[rest[n:]], self.y[rest[n:]])):
                log_probs = temperature.apply(predict(features))
                line[f"{name}_accuracy"] = round(float((log_probs.argmax(dim=1) == y).double().mean()), 5)
                line[f"{name}_nll"] = round(float(-log_probs.gather(1, y.unsqueeze(1)).mean()), 5)
            lines.append(line)
        return lines

    def _features(self, n_nodes: int, labeled: np.ndarray, *, is_timed: bool) -> tuple[Tensor, Tensor]:
        if n_nodes == 0:
            return self.pool, self.test
        if n_nodes == len(self.pool) and self._whole is not None:
            return self._whole
        chosen = choose_nodes(self.keys, [self.keys[row] for row in labeled], n_nodes)
        position = {key: row for row, key in enumerate(self.keys)}
        started = time.process_time()
        smoothing = fit_smoothing(chosen, self.pool[[position[key] for key in chosen]])
        print(f"{n_nodes} nodes: fitted in {time.process_time() - started:.0f} s of processor time", flush=True)
        if is_timed:
            self._time(smoothing)
        made = smoothing.transform(self.keys, self.pool), smoothing.place(self.test)
        if n_nodes == len(self.pool):
            self._whole = made
        return made

    def _time(self, smoothing: Smoothing) -> None:
        """Print the time for many rows, which are placed in parts and forgotten, as a large pool is."""
        started = time.process_time()
        for _ in range(PLACED // len(self.test)):
            smoothing.place(self.test)
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"placed {PLACED} rows in {seconds:.0f} s of processor time; peak memory so far {peak:.2f} GB", flush=True
        )


def markdown(lines: list[dict[str, object]]) -> str:
    """Return means over seeds."""
    text = ["| nodes | labels | test accuracy | pool accuracy | test NLL | pool NLL |", "|---|---|---|---|---|---|"]
    for nodes in dict.fromkeys(int(str(line["nodes"])) for line in lines):
        for labels in BUDGETS:
            found = [line for line in lines if (line["nodes"], line["labels"]) == (nodes, labels)]
            means = [
                np.mean([float(str(line[f"{part}_{metric}"])) for line in found])
                for metric in ("accuracy", "nll")
                for part in ("test", "pool")
            ]
            accuracies = " | ".join(f"{100 * mean:.2f}" for mean in means[:2])
            nlls = " | ".join(f"{mean:.3f}" for mean in means[2:])
            text.append(f"| {nodes or 'raw features'} | {labels} | {accuracies} | {nlls} |")
    return "\n".join(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
