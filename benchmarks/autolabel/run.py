"""Benchmark: automatic labels with a promise, on public sets whose truth is known.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/autolabel/run.py --work FOLDER [--sets digits trashnet]

FOLDER holds the features that benchmarks/label_efficiency extracts; digits and Fashion-MNIST use pixels and need none
(ALLOOP_FASHION_MNIST names the folder of Debian's package dataset-fashion-mnist). Of every set and seed one model is
trained on uniformly drawn labels; its predictions are kept in FOLDER/autolabel. Then 100 holdouts are drawn from the
images left, the promise is made on each, and the share of errors in the other images is counted. The lines of
other sets and seeds in results.csv stay.
"""

import argparse
import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from place import Place, load_features

from alloop.calibration.temperature import apply_temperature, fit_temperature
from alloop.evaluation.autolabel import level_of_look, walk

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"

N_LABELS = {"trashnet": 400, "cifar10": 1000, "digits": 200, "bccd": 400, "fashion-mnist": 500}
HOLDOUTS = (200, 1000)
TARGETS = (0.01, 0.02, 0.05)
CONFIDENCE, DRAWS = 0.95, 100
MOST_LEFT = 5_000  # images besides the training images; of larger sets a random part
# Part of the rest that a strategy took before: the most uncertain fifth, a random fifth, the surest fifth.
TAKEN = ("nothing", "hard", "random", "easy")
METHODS = ("look 1", "one look", "probability 0.95", "untested")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the tables of results.csv, and compute nothing")
    parser.add_argument("--sets", nargs="+", default=list(N_LABELS))
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    with RESULTS.open(newline="") as file:
        lines: list[dict[str, object]] = list(csv.DictReader(file))
    for name in () if options.table else options.sets:
        for seed in range(options.seeds):
            log_probs, y = predictions(name, seed, options.work)
            lines = [line for line in lines if (line["set"], line["seed"]) != (name, str(seed))]
            accuracy = (log_probs.argmax(axis=1) == y).mean()
            print(f"{name} seed {seed}: {len(y)} images left, accuracy {accuracy:.3f}", flush=True)
            for n in HOLDOUTS:
                if n < 0.7 * len(y):
                    lines += measure(name, seed, log_probs, y, n)
            with RESULTS.open("w", newline="") as file:  # after every set, because the next may take long
                writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)
    print_tables(lines)


def predictions(name: str, seed: int, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the model's predictions before calibration [N, K] and the truth [N], for images it was not trained on."""
    path = work / "autolabel" / f"{name}-{seed}.npz"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        log_probs, y = train_and_predict(name, N_LABELS[name], seed, work)
        np.savez(path, log_probs=log_probs, y=y)
    with np.load(path) as arrays:
        kept = np.random.default_rng(seed).permutation(len(arrays["y"]))[:MOST_LEFT]
        return arrays["log_probs"][kept], arrays["y"][kept]


def train_and_predict(name: str, n_labels: int, seed: int, work: Path) -> tuple[np.ndarray, np.ndarray]:
    F, y = load_features(name, work)
    order = np.random.default_rng(seed).permutation(len(F))
    train, rest = np.sort(order[:n_labels]), np.sort(order[n_labels:])
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), F, y, np.arange(len(F)), seed)
        return place.predict(place.train(train, y[train]), rest, is_calibrated=False), y[rest]


def measure(name: str, seed: int, log_probs: np.ndarray, y: np.ndarray, n: int) -> list[dict[str, object]]:
    """Return one line per strategy, method and target: counts over the draws."""
    scores, wrong = log_probs.max(axis=1), log_probs.argmax(axis=1) != y
    found: dict[tuple[str, str, float], list[tuple[float, float]]] = {}
    for draw in range(DRAWS):
        generator = np.random.default_rng([seed, n, draw])
        order = generator.permutation(len(y))
        holdout, rest = order[:n], order[n:]
        top = np.exp(scores)
        temperature = fit_temperature(torch.from_numpy(log_probs[holdout]), torch.from_numpy(y[holdout]))[0].temperature
        calibrated = apply_temperature(torch.from_numpy(log_probs), temperature).exp().numpy().max(axis=1)
        for taken in TAKEN:
            if taken != "nothing" and n != HOLDOUTS[1]:
                continue
            left = without_taken(rest, top, taken, generator)
            for target in TARGETS if taken == "nothing" else TARGETS[1:2]:
                for method in METHODS if taken == "nothing" else METHODS[1:2]:
                    accepted = accept(method, scores, wrong, calibrated, holdout, left, target)
                    share = wrong[left][accepted].mean() if accepted.any() else 0.0
                    found.setdefault((taken, method, target), []).append((share, accepted.mean()))
    lines: list[dict[str, object]] = []
    for (taken, method, target), runs in found.items():
        shares, coverage = np.array(runs).T
        lines.append(
            {
                "set": name,
                "seed": str(seed),
                "holdout": str(n),
                "taken": taken,
                "method": method,
                "target": str(target),
                "runs": len(runs),
                "broken": int((shares > target + 1e-12).sum()),
                "labeled_something": int((coverage > 0).sum()),
                "coverage": f"{coverage.mean():.4f}",
                "worst_error": f"{shares.max():.4f}",
            }
        )
    return lines


def without_taken(rest: np.ndarray, top: np.ndarray, taken: str, generator: np.random.Generator) -> np.ndarray:
    n = len(rest) // 5
    if taken == "hard":
        return rest[np.argsort(top[rest])[n:]]
    if taken == "easy":
        return rest[np.argsort(-top[rest])[n:]]
    return generator.permutation(rest)[n:] if taken == "random" else rest


def accept(
    method: str,
    scores: np.ndarray,
    wrong: np.ndarray,
    calibrated: np.ndarray,
    holdout: np.ndarray,
    rest: np.ndarray,
    target: float,
) -> np.ndarray:
    """Return which images of the rest get a label."""
    if method == "probability 0.95":
        return np.asarray(calibrated[rest] >= 0.95)
    if method == "untested":  # the loosest threshold whose accuracy on the holdout is that of the promise
        order = holdout[np.argsort(-scores[holdout])]
        share = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)
        good = np.flatnonzero(share <= target)
        return np.asarray(scores[rest] >= scores[order[good[-1]]]) if len(good) else np.zeros(len(rest), dtype=bool)
    level = level_of_look(1, CONFIDENCE) if method == "look 1" else 1 - CONFIDENCE
    step = walk(scores[holdout], wrong[holdout], scores[rest], target, level).accepted
    return np.zeros(len(rest), dtype=bool) if step is None else np.asarray(scores[rest] > step.threshold)


def print_tables(lines: Sequence[Mapping[str, object]]) -> None:
    """Print the README's tables: sums and means over seeds."""
    for taken in TAKEN:
        methods = METHODS if taken == "nothing" else METHODS[1:2]
        print(f"\nTaken before: {taken}. Share of runs that broke the promise | mean coverage")
        print("| set | holdout | promise | " + " | ".join(methods) + " |\n|---|---|---|" + "---|" * len(methods))
        keys = dict.fromkeys((li["set"], li["holdout"], li["target"]) for li in lines if li["taken"] == taken)
        for name, n, target in keys:
            cells = []
            for method in methods:
                key = (name, n, target, taken, method)
                mine = [
                    li for li in lines if (li["set"], li["holdout"], li["target"], li["taken"], li["method"]) == key
                ]
                runs = sum(int(str(li["runs"])) for li in mine)
                broken = sum(int(str(li["broken"])) for li in mine) / runs
                coverage = np.mean([float(str(li["coverage"])) for li in mine])
                cells.append(f"{broken:.1%} \\| {coverage:.0%}" if coverage else "nothing")
            print(f"| {name} | {n} | {float(str(target)):.0%} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
