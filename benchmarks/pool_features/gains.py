"""Tables of the finished cells, with paired intervals over seeds, and the targets."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

METRICS = ("accuracy", "balanced", "nll", "ece")
BUDGETS = (10, 20, 40, 80, 160, 320)
Line = dict[str, float | str]
Key = tuple[str, str, int]  # scene, order, labels


class Results:
    """Metrics by scene, order, number of labels, model and seed."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.values = {
            (str(line["scene"]), str(line["order"]), int(line["labels"]), str(line["model"]), int(line["seed"])): line
            for line in lines
        }
        self.keys: list[Key] = sorted({(scene, order, labels) for scene, order, labels, *_ in self.values})

    def of(self, kind: str, order: str | None = None) -> list[Key]:
        """Return keys of a kind of scene; of all orders in which every model has the same labels, or of one order."""
        orders = (order,) if order else ("random", "entropy-spread")
        return [key for key in self.keys if key[0].startswith(f"{kind}/") and key[1] in orders]

    def paired(self, key: Key, metric: str, model: str, other: str = "raw") -> np.ndarray:
        """Return the difference of two models, one number per seed."""
        seeds = sorted({seed for *at, _, seed in self.values if tuple(at) == key})
        pairs = [[float(self.values[(*key, name, seed)][metric]) for name in (model, other)] for seed in seeds]
        return np.array([one - two for one, two in pairs])


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Return mean, and Student's 95 % interval of the mean (nan for one seed)."""
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, n - 1)) * float(differences.std(ddof=1)) / n**0.5
    return mean, mean - half, mean + half


def write_lines(lines: Sequence[Mapping[str, object]], out: Path) -> None:
    """Write lines that all have the keys of the first one to a CSV file."""
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def print_tables(folder: Path, out: Path) -> None:
    lines: list[Line] = []
    for path in sorted(folder.glob("*/*/*.json")):
        scene, seed = f"{path.parts[-3]}/{path.parts[-2]}", int(path.name.split("-")[0])
        lines += [{"scene": scene, "seed": seed, **line} for line in json.loads(path.read_text())]
    write_lines([{key: f"{value:.5g}" if isinstance(value, float) else value for key, value in line.items()}
                 for line in lines], out)  # fmt: skip
    results = Results(lines)
    for kind, metric in (("natural", "accuracy"), ("natural", "nll"), ("natural", "ece"), ("pair", "accuracy"),
                         ("cut", "accuracy"), ("junk", "accuracy"), ("imbalanced", "balanced")):  # fmt: skip
        for model in ("smoothed", "weighed"):
            _gains(results, kind, metric, model)
    for metric in ("accuracy", "nll"):
        _closed(results, metric)
    _weights(results)
    _fixed(results)
    _targets(results)


def _gains(results: Results, kind: str, metric: str, model: str) -> None:
    """Print random / asked; a star marks a difference whose interval excludes 0."""
    scale = 1 if metric == "nll" else 100
    keys = results.of(kind)
    if not keys:
        return
    print(f"\n### {kind}: {metric} of {model} heads minus raw heads{'' if scale == 1 else ', points'}\n")
    print("| set | seeds | " + " | ".join(map(str, BUDGETS)) + " |\n|" + "---|" * (len(BUDGETS) + 2))
    for scene in dict.fromkeys(key[0] for key in keys):
        cells, seeds = [], set()
        for labels in BUDGETS:
            texts = []
            for order in ("random", "entropy-spread"):
                if (scene, order, labels) in keys:
                    differences = results.paired((scene, order, labels), metric, model)
                    seeds.add(len(differences))
                    texts.append(_number(differences, scale, 3 if scale == 1 else 1))
            cells.append(" / ".join(texts))
        print(f"| {scene.split('/')[1]} | {'–'.join(map(str, sorted(seeds)))} | " + " | ".join(cells) + " |")


def _number(differences: np.ndarray, scale: int, digits: int) -> str:
    mean, low, high = interval(differences)
    return f"{scale * mean:+.{digits}f}{'*' if low > 0 or high < 0 else ''}"


def _closed(results: Results, metric: str) -> None:
    """Print weighed heads that ask for their labels minus raw heads that ask for theirs."""
    asked = "entropy-spread"
    scale, own = 1 if metric == "nll" else 100, f"{asked}, own"
    print(f"\n### closed loop: {metric}\n")
    print("| set | seeds | " + " | ".join(map(str, BUDGETS)) + " |\n|" + "---|" * (len(BUDGETS) + 2))
    for scene in dict.fromkeys(key[0] for key in results.of("natural", own)):
        cells, seeds = [], set()
        for labels in BUDGETS:
            both = [
                {at[4]: float(line[metric]) for at, line in results.values.items()
                 if at[:4] == (scene, order, labels, model)}
                for order, model in ((own, "weighed"), (asked, "raw"))
            ]  # fmt: skip
            common = sorted(both[0].keys() & both[1].keys())
            seeds.add(len(common))
            differences = np.array([both[0][seed] - both[1][seed] for seed in common])
            cells.append(_number(differences, scale, 3 if scale == 1 else 1) if common else "")
        print(f"| {scene.split('/')[1]} | {'–'.join(map(str, sorted(seeds)))} | " + " | ".join(cells) + " |")


def _weights(results: Results) -> None:
    print("\n### Median weights a (raw heads) and b (smoothed heads), random labels\n")
    print("| set | " + " | ".join(map(str, BUDGETS)) + " |\n|" + "---|" * (len(BUDGETS) + 1))
    for scene in dict.fromkeys(key[0] for key in results.keys):
        cells = []
        for labels in BUDGETS:
            found = [line for key, line in results.values.items()
                     if key[:4] == (scene, "random", labels, "weighed")]  # fmt: skip
            medians = [np.median([float(line[name]) for line in found]) for name in "ab"] if found else []
            cells.append(", ".join(f"{median:.2f}" for median in medians))
        print(f"| {scene} | " + " | ".join(cells) + " |")


def _fixed(results: Results) -> None:
    """Print NLLs without a holdout, mean over the natural sets and both orders."""
    keys = results.of("natural")
    models = sorted({model for _, _, _, model, _ in results.values if "T =" in model})
    print("\n### NLL with a fixed temperature, mean over the natural sets, both orders and seeds\n")
    print("| model | " + " | ".join(map(str, BUDGETS)) + " |\n|" + "---|" * (len(BUDGETS) + 1))
    for model in models:
        cells = []
        for labels in BUDGETS:
            found = [float(line["nll"]) for at, line in results.values.items() if at[3] == model and at[:3] in keys
                     and at[2] == labels]  # fmt: skip
            cells.append(f"{np.mean(found):.3f}" if found else "")
        print(f"| {model} | " + " | ".join(cells) + " |")


def _targets(results: Results) -> None:
    print("\n### Targets\n\n| target | model | found | |\n|---|---|---|---|")
    for model in ("smoothed", "weighed"):
        for metric, sign in (("accuracy", 1), ("nll", -1)):
            _never_worse(results, model, metric, sign)
        _mean_within(results, "cut", model, "accuracy", lambda mean: mean >= -0.003,
                     "sets made to hurt: within 0.3 points")  # fmt: skip
        _mean_within(results, "junk", model, "accuracy", lambda mean: mean > 0, "20 % junk: gain positive on average")
        _mean_within(results, "imbalanced", model, "balanced", lambda mean: mean >= 0,
                     "20:1 imbalance: balanced accuracy not below raw")  # fmt: skip
        _mean_within(results, "natural", model, "ece", lambda mean: mean <= 0.003,
                     "ECE from 40 labels on: at most 0.3 points above raw", from_labels=40)  # fmt: skip


def _never_worse(results: Results, model: str, metric: str, sign: int) -> None:
    keys = results.of("natural")
    worse, better = [], 0
    for key in keys:
        mean, low, high = interval(sign * results.paired(key, metric, model))
        better += low > 0
        if high < 0:
            worse.append(f"{key[0].split('/')[1]}, {key[1]}, {key[2]} labels ({sign * mean:+.4f})")
    found = "; ".join([f"{better} of {len(keys)} cells significantly better, {len(worse)} worse", *worse])
    print(f"| natural sets: never significantly worse in {metric} | {model} | {found} | {_met(not worse)} |")


def _mean_within(
    results: Results,
    kind: str,
    model: str,
    metric: str,
    is_met: Callable[[float], bool],
    title: str,
    from_labels: int = 0,
) -> None:
    keys = [key for key in results.of(kind) if key[2] >= from_labels]
    if not keys:
        return
    sets = {
        scene: float(np.mean([results.paired(key, metric, model).mean() for key in keys if key[0] == scene]))
        for scene in dict.fromkeys(key[0] for key in keys)
    }
    mean = float(np.mean(list(sets.values())))
    each = ", ".join(f"{scene.split('/')[1]} {100 * value:+.1f}" for scene, value in sets.items())
    print(f"| {title} | {model} | {100 * mean:+.2f} points on average: {each} | {_met(is_met(mean))} |")


def _met(is_met: bool) -> str:
    return "**met**" if is_met else "**missed**"
