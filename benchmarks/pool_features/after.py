"""Corrections of the weighed predictions by the pool or by the holdout's shares of classes, measured beside them.

    ALLOOP_DATA=... python benchmarks/pool_features/after.py --work FOLDER
    python benchmarks/pool_features/after.py --tables     # tables of after.csv; computes nothing

*graph*: predictions of the pool are averaged over the graph, p ← 0.3 P p + 0.7 p_weighed, with the labels to train on
kept fixed; an image outside the pool takes 0.3 of its ten nearest nodes. *pool shares*: predictions are multiplied by
the square root of (share of the class in the holdout, one image added to each class / mean prediction over the pool).
*holdout shares*: the same with the mean prediction over the holdout, so that nothing but the holdout is needed. All get
a temperature that is fitted to the holdout, as the weighed predictions have their weights. Measured on images outside
the pool. FOLDER is that of run.py.
"""

import argparse
import csv
import logging
from pathlib import Path

import numpy as np
import torch
from gains import write_lines
from run import BUDGETS, HEAD_DECAY, SMOOTHED_DECAY, STRATEGY, Cell, smooth
from scenes import SCENES
from torch import Tensor

from alloop.calibration.temperature import fit_temperature
from alloop.calibration.weighing import fit_weights, weigh
from alloop.smoothing.smoothing import _graph, _neighbors

ALPHA, STEPS, STRENGTH, SEEDS = 0.3, 20, 0.5, 3
ORDERS = ("random", STRATEGY)
MODELS = ("graph", "pool shares", "holdout shares")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("after.csv"))
    options = parser.parse_args()
    if not options.tables:
        lines: list[dict[str, object]] = []
        for name in options.scenes:
            for seed in range(SEEDS):
                lines += [
                    {"scene": name, "seed": seed, **line}
                    for line in measure(Cell(SCENES[name](seed, options.work), seed))
                ]
                print(f"{name} {seed}", flush=True)
        write_lines(lines, options.out)
    with options.out.open(newline="") as file:
        print_tables(list(csv.DictReader(file)))


def measure(cell: Cell) -> list[dict[str, object]]:
    nodes, lines = Nodes(cell.raw, cell.raw_test), []
    for order in ORDERS:
        for rows in cell._random() if order == "random" else cell._asked(is_own=False):
            if len(rows) in BUDGETS:
                found = predict(cell, nodes, rows)
                lines += [
                    {"order": order, "labels": len(rows), "model": model, **_rounded(cell._metrics(log_probs))}
                    for model, log_probs in found.items()
                ]
    return lines


def predict(cell: Cell, nodes: "Nodes", rows: np.ndarray) -> dict[str, Tensor]:
    """Return log-probabilities of the measured images by every model."""
    held, targets = cell.holdout, cell.y[cell.holdout]
    raw, smoothed = cell._heads(cell.raw, rows, HEAD_DECAY), cell._heads(cell.smoothed, rows, SMOOTHED_DECAY)
    both = torch.stack([raw(cell.raw), smoothed(cell.smoothed)], dim=1)
    a, b = fit_weights(both[held], targets)
    p = weigh(both, a, b).exp()
    p_test = weigh(torch.stack([raw(cell.raw_test), smoothed(cell.smoothed_test)], dim=1), a, b).exp()
    counts = torch.bincount(targets, minlength=cell.scene.n_classes) + 1
    found = {"graph": nodes.average(p, p_test, rows, cell.y[rows])}
    for model, there in (("pool shares", p), ("holdout shares", p[held])):
        ratio = (counts / counts.sum() / there.mean(dim=0)) ** STRENGTH
        found[model] = p * ratio, p_test * ratio
    predicted = {"weighed": p_test.log()}
    for model, pair in found.items():
        inside, outside = (part.clamp_min(1e-30).log().log_softmax(dim=1) for part in pair)
        predicted[model] = fit_temperature(inside[held], targets)[0].apply(outside)
    return predicted


class Nodes:
    """The graph of a pool, whose nodes are in the order of their keys, and the links of measured images to it."""

    def __init__(self, pool: Tensor, measured: Tensor) -> None:
        smoothing, keys = smooth(pool)
        found, squared = _neighbors(smoothing.places, lambda _: None)
        self.graph = _graph(found, squared, smoothing.widths).astype(np.float64)
        self.at, self.links = smoothing.positions(keys), smoothing.link(measured)

    def average(self, p: Tensor, p_measured: Tensor, rows: np.ndarray, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions of the pool and of measured images, averaged over the graph."""
        own, fixed = torch.empty_like(p), self.at[rows]
        own[self.at] = p
        known = torch.nn.functional.one_hot(labels, p.shape[1]).to(p)
        own[fixed] = known
        found = own
        for _ in range(STEPS):
            found = ALPHA * torch.from_numpy(self.graph @ found.numpy()) + (1 - ALPHA) * own
            found[fixed] = known
        beside = torch.einsum("bj,bjk->bk", self.links.weights.double(), found[self.links.nodes])
        return found[self.at], (1 - ALPHA) * p_measured + ALPHA * beside


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in metrics.items()}


def print_tables(lines: list[dict[str, str]]) -> None:
    """Print differences to the weighed predictions, in mean over the sets of a kind and all seeds."""
    values = {(ln["scene"], ln["order"], ln["labels"], ln["model"], ln["seed"]): ln for ln in lines}
    kinds = dict.fromkeys(line["scene"].partition("/")[0] for line in lines)
    print("| correction | sets | labels | " + " | ".join(map(str, BUDGETS)) + " |\n|" + "---|" * (3 + len(BUDGETS)))
    for model in MODELS:
        for kind in kinds:
            for order in ORDERS:
                cells = []
                for n in map(str, BUDGETS):
                    keys = [key for key in values if key[1:4] == (order, n, model) and key[0].startswith(f"{kind}/")]
                    pairs = [(values[key], values[(*key[:3], "weighed", key[4])]) for key in keys]
                    cells.append(_shown(pairs, "balanced" if kind == "imbalanced" else "accuracy"))
                print(f"| {model} | {kind} | {'random' if order == 'random' else 'asked'} | {' | '.join(cells)} |")


def _shown(pairs: list[tuple[dict[str, str], dict[str, str]]], accuracy: str) -> str:
    points, nll = (
        np.mean([float(one[metric]) - float(other[metric]) for one, other in pairs]) for metric in (accuracy, "nll")
    )
    return f"{100 * points:+.1f}, {nll:+.3f}"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    main()
