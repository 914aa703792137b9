"""What one linear head on raw features, distilled from the weighed model over the pool, keeps of the gain.

    ALLOOP_DATA=... python benchmarks/pool_features/distill.py --work FOLDER
    python benchmarks/pool_features/distill.py --tables     # tables of distill.csv; computes nothing

All models are measured on images outside the pool, after random labels. FOLDER is that of run.py and keeps finished
cells; the same command continues after a stop.
"""

import argparse
import csv
import dataclasses
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from gains import write_lines
from run import N_HOLDOUT, SMOOTHED_DECAY, fit, smooth
from scenes import NATURAL, natural
from torch import Tensor

from alloop.calibration.temperature import fit_temperature
from alloop.calibration.weighing import fit_weights, weigh
from alloop.engine import distill as distilling
from alloop.engine.build import HEAD_DECAY
from alloop.evaluation.metrics import confidence_bins
from alloop.files import write_bytes
from alloop.smoothing.smoothing import Smoothing, choose_nodes

BUDGETS, SEEDS = (40, 80, 160), 3
DECAYS = (3e-6, 1e-5, 1e-4, 3e-4)  # beside the one in use, with the first seed
MODELS = ("raw", "weighed", "distilled")
METRICS = ("accuracy", "nll", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(NATURAL), choices=NATURAL)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("distill.csv"))
    options = parser.parse_args()
    if not options.tables:
        lines = []
        for seed in range(SEEDS):
            for name in options.sets:
                lines += measure(name, seed, options.work)
        write_lines(lines, options.out)
    with options.out.open(newline="") as file:
        print_tables(list(csv.DictReader(file)))


def measure(name: str, seed: int, work: Path) -> list[dict[str, object]]:
    """Return the lines of one pool with one seed, measured once."""
    kept = work / "pool-features" / f"distill-{name}-{seed}.json"
    if not kept.exists():
        started = time.process_time()
        lines = _measure(name, seed, work)
        write_bytes(kept, json.dumps(lines).encode())
        print(f"{name} {seed}: {time.process_time() - started:.0f} s of processor time", flush=True)
    return list(json.loads(kept.read_text()))


def _measure(name: str, seed: int, work: Path) -> list[dict[str, object]]:
    scene = natural(name, seed, work)
    order = np.random.default_rng([seed, 0]).permutation(len(scene.y))  # that of run.py
    holdout, rest = order[:N_HOLDOUT], order[N_HOLDOUT:]
    pool, test = torch.from_numpy(scene.F).float(), torch.from_numpy(scene.F_test).float()
    y, y_test = torch.from_numpy(scene.y), torch.from_numpy(scene.y_test)
    smoothing, keys = smooth(pool)
    smoothed, smoothed_test = smoothing.transform(keys, pool), smoothing.place(test)
    row_of = {key: row for row, key in enumerate(keys)}
    sample = [row_of[key] for key in choose_nodes(keys, (), distilling.MOST)]
    lines = []
    for n in BUDGETS:
        rows = rest[:n]
        raw_heads = fit(pool[rows], y[rows], scene.n_classes, HEAD_DECAY, seed)
        smoothed_heads = fit(smoothed[rows], y[rows], scene.n_classes, SMOOTHED_DECAY, seed)
        both = torch.stack([raw_heads(pool), smoothed_heads(smoothed)], dim=1)
        both_test = torch.stack([raw_heads(test), smoothed_heads(smoothed_test)], dim=1)
        a, b = fit_weights(both[holdout], y[holdout])
        temperature, _ = fit_temperature(both[holdout, 0], y[holdout])
        found = {"raw": temperature.apply(both_test[:, 0]), "weighed": weigh(both_test, a, b)}
        soft = weigh(both[sample], a, b).float()
        for model, head in _distilled(pool[sample], soft, smoothing, with_variants=seed == 0).items():
            found[model] = (test @ head[0].T + head[1]).log_softmax(dim=-1)
        lines += [
            {"set": name, "seed": seed, "labels": n, "model": model, **_metrics(log_probs, y_test)}
            for model, log_probs in found.items()
        ]
    return lines


def _distilled(
    features: Tensor, log_probs: Tensor, smoothing: Smoothing, *, with_variants: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weights and biases of the distilled head as alloop fits it, and of variants."""
    used, heads = distilling.RECIPE, {}
    for decay in (used.weight_decay, *(DECAYS if with_variants else ())):
        distilling.RECIPE = dataclasses.replace(used, weight_decay=decay)
        name = "distilled" if decay == used.weight_decay else f"distilled, decay {decay:g}"
        heads[name] = distilling.distill(features, log_probs, smoothing, torch.Generator().manual_seed(0))
    distilling.RECIPE = used
    if not with_variants:
        return heads
    whole = dataclasses.replace(smoothing, axes=torch.eye(features.shape[1]))
    heads["distilled, all axes"] = distilling.distill(features, log_probs, whole, torch.Generator().manual_seed(0))
    return heads


def _metrics(log_probs: Tensor, targets: Tensor) -> dict[str, float]:
    bins = confidence_bins(log_probs.double().exp().numpy(), targets.numpy())
    gaps = bins.count * np.abs(np.nan_to_num(bins.accuracy - bins.confidence))
    return {
        "accuracy": round(float((log_probs.argmax(dim=1) == targets).double().mean()), 5),
        "nll": round(float(-log_probs.gather(1, targets.unsqueeze(1)).mean()), 5),
        "ece": round(float(gaps.sum() / bins.count.sum()), 5),
    }


def print_tables(lines: list[dict[str, str]]) -> None:
    sets = list(dict.fromkeys(line["set"] for line in lines))
    print("Accuracy in %, means over seeds; NLL in nats, ECE in points.\n")
    print("| set | labels | raw | weighed | distilled | share kept | NLL: raw, weighed, distilled | ECE |")
    print("|---|---|---|---|---|---|---|---|")
    for name in [*sets, "mean"]:
        for labels in BUDGETS:
            chosen = [line for line in lines if line["set"] in (name, *(sets if name == "mean" else ()))]
            means = {(model, metric): _mean(chosen, labels, model, metric) for model in MODELS for metric in METRICS}
            accuracies = [100 * means[model, "accuracy"] for model in MODELS]
            columns = [f"{value:.1f}" for value in accuracies]
            columns.append(_share([means[model, "accuracy"] for model in MODELS]))
            columns.append(", ".join(f"{means[model, 'nll']:.3f}" for model in MODELS))
            columns.append(", ".join(f"{100 * means[model, 'ece']:.1f}" for model in MODELS))
            print(f"| {name} | {labels} | {' | '.join(columns)} |")
    print("\nVariants, means over sets with one seed; share kept of the gain in accuracy and in NLL.\n")
    lines = [line for line in lines if int(line["seed"]) == 0]
    print("| variant | " + " | ".join(f"{labels} labels" for labels in BUDGETS) + " |")
    print("|---" * (1 + len(BUDGETS)) + "|")
    for variant in dict.fromkeys(line["model"] for line in lines if line["model"].startswith("distilled")):
        columns = []
        for labels in BUDGETS:
            parts = [
                _share([_mean(lines, labels, model, metric) for model in ("raw", "weighed", variant)])
                for metric in ("accuracy", "nll")
            ]
            columns.append(", ".join(parts))
        print(f"| {variant} | {' | '.join(columns)} |")


def _mean(lines: list[dict[str, str]], labels: int, model: str, metric: str) -> float:
    return float(
        np.mean([float(line[metric]) for line in lines if (int(line["labels"]), line["model"]) == (labels, model)])
    )


def _share(values: list[float]) -> str:
    """Return the share of the gain from the first to the second that the third keeps; none if there is no gain."""
    raw, weighed, distilled = values
    return "no gain" if abs(weighed - raw) < 0.002 else f"{100 * (distilled - raw) / (weighed - raw):.0f} %"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    main()
