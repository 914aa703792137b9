"""Benchmark: does it help to train on automatic labels (`[train] use_auto_labels`)?

    OMP_NUM_THREADS=1 nice -n 8 python benchmarks/autolabel/training.py --work FOLDER [--sets digits fashion-mnist]

FOLDER holds the features that benchmarks/label_efficiency extracts; digits and Fashion-MNIST use pixels and need none.
Of every set and seed, 30 % of the images are only measured on. A model is trained on uniformly drawn labels, as a round
trains it, and 300 further labels are the holdout. If the holdout allows a promise, the images above the threshold get
the model's class, and a second model is trained on people's and these labels. Both are calibrated on the holdout and
measured on the same images. Writes training.csv.
"""

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from place import Place, load_features
from scipy.stats import t as student

from alloop.evaluation.autolabel import level_of_look, walk

HERE = Path(__file__).parent
RESULTS = HERE / "training.csv"
N_LABELS = {"digits": (50, 200), "fashion-mnist": (100, 500), "trashnet": (100, 400)}
TARGETS = (0.02, 0.05, 0.1)
HOLDOUT, TEST_SHARE, CONFIDENCE = 300, 0.3, 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(N_LABELS), choices=list(N_LABELS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="print the table of training.csv, and compute nothing")
    options = parser.parse_args()
    lines = read_lines()
    if not options.table:
        done = {(line["set"], line["labels"], line["seed"]) for line in lines}
        for name in options.sets:
            for n_labels in N_LABELS[name]:
                for seed in range(options.seeds):
                    if (name, str(n_labels), str(seed)) not in done:
                        lines += measure(name, n_labels, seed, options.work)
                        write_lines(lines)
    print_table(lines)


def measure(name: str, n_labels: int, seed: int, work: Path) -> list[dict[str, str]]:
    """Return one line per promise, and print it."""
    F, y = load_features(name, work)
    order = np.random.default_rng([seed, n_labels]).permutation(len(F))
    test, pool = np.sort(order[: round(TEST_SHARE * len(F))]), order[round(TEST_SHARE * len(F)) :]
    labeled, holdout, rest = (np.sort(part) for part in np.split(pool, [n_labels, n_labels + HOLDOUT]))
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), F, y, np.sort(pool), seed)
        model = place.train(labeled, y[labeled], holdout)
        before = quality(place.predict(model, test, is_calibrated=True), y[test])
        held, left = (place.predict(model, rows, is_calibrated=False) for rows in (holdout, rest))
        wrong = held.argmax(axis=1) != y[holdout]
        for target in TARGETS:
            level = level_of_look(1, CONFIDENCE)
            step = walk(held.max(axis=1), wrong, left.max(axis=1), target, level).accepted
            taken = np.zeros(len(rest), dtype=bool) if step is None else left.max(axis=1) > step.threshold
            given = left.argmax(axis=1)[taken]
            after = before
            if taken.any():
                rows, targets = np.concatenate([labeled, rest[taken]]), np.concatenate([y[labeled], given])
                after = quality(place.predict(place.train(rows, targets, holdout), test, is_calibrated=True), y[test])
            line = {
                "set": name,
                "labels": str(n_labels),
                "seed": str(seed),
                "promise": str(target),
                "automatic": str(int(taken.sum())),
                "rest": str(len(rest)),
                "wrong": f"{(given != y[rest[taken]]).mean() if taken.any() else 0:.4f}",
                "accuracy": f"{before[0]:.4f}",
                "accuracy_with": f"{after[0]:.4f}",
                "nll": f"{before[1]:.4f}",
                "nll_with": f"{after[1]:.4f}",
            }
            print(*line.values(), flush=True)
            lines.append(line)
    return lines


def quality(log_probs: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return accuracy and mean NLL in nats."""
    return float((log_probs.argmax(axis=1) == y).mean()), float(-log_probs[np.arange(len(y)), y].mean())


def read_lines() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def write_lines(lines: Sequence[dict[str, str]]) -> None:
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def print_table(lines: Sequence[dict[str, str]]) -> None:
    """Print means over seeds, and paired differences with Student's 95 % interval."""
    print("\n| set | labels | promise | seeds with automatic labels | mean number | wrong | accuracy | with them (pp) |"
          " NLL | with them |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for key in dict.fromkeys((line["set"], line["labels"], line["promise"]) for line in lines):
        mine = [line for line in lines if (line["set"], line["labels"], line["promise"]) == key]
        some = [line for line in mine if int(line["automatic"])]
        cells = [f"{len(some)} of {len(mine)}"]
        if some:
            number, wrong, accuracy, nll = (
                np.mean([float(line[field]) for line in some]) for field in ("automatic", "wrong", "accuracy", "nll")
            )
            cells += [f"{number:.0f}", f"{wrong:.1%}", f"{accuracy:.1%}", difference(some, "accuracy", 100, 2)]
            cells += [f"{nll:.3f}", difference(some, "nll", 1, 3)]
        else:
            cells += ["–"] * 6
        print(f"| {key[0]} | {key[1]} | {float(key[2]):.0%} | " + " | ".join(cells) + " |")


def difference(lines: Sequence[dict[str, str]], field: str, factor: float, digits: int) -> str:
    gaps = np.array([factor * (float(line[f"{field}_with"]) - float(line[field])) for line in lines])
    if len(gaps) < 2:
        return f"{gaps[0]:+.{digits}f}"
    half = student.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    return f"{gaps.mean():+.{digits}f} [{gaps.mean() - half:+.{digits}f}, {gaps.mean() + half:+.{digits}f}]"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
