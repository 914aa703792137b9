"""Tables of finished runs: areas, labels to match random, budgets at which a strategy is below random, and targets."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats
from sets import BATCHES, LOOSE, SEEDS, C

LEVEL = 0.95
KEYS = {"head": "head_accuracy", "loose": "loose_accuracy", "own": "accuracy"}  # of a finished run's file


@dataclasses.dataclass(frozen=True)
class Run:
    """A strategy with a seed.

    Attributes:
        curves: Accuracies [rounds] of the one scoring head (`head`), of it with another C (`loose`), and of alloop's
            own model (`own`), if they exist.
        select_seconds: Seconds of choosing in a round after the first one.
        settings: Help that a peer got.
    """

    set: str
    by: str
    strategy: str
    seed: int
    curves: Mapping[str, tuple[float, ...]]
    select_seconds: float
    settings: str


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of a table, over the seeds that a strategy and random share."""

    by: str
    strategy: str
    n_seeds: int
    area: float
    area_std: float
    final: float
    share: float  # share of random's labels until random's final accuracy; above 1: not reached
    difference: tuple[float, float, float]  # area minus random's area: mean, ends of the interval
    below: tuple[int, ...]  # numbers of labels at which it is significantly below random
    select_seconds: float
    settings: str


def collect(work: Path) -> list[Run]:
    """Return all finished runs in a fixed order."""
    runs = []
    for path in sorted((work / "runs").glob("*/seed*/*-*.json")):
        kind = path.name.partition("-")[0]
        if kind not in ("arm", "peer"):
            continue
        data = json.loads(path.read_text())
        by = "alloop" if kind == "arm" else data["version"]
        runs.append(
            Run(
                set=path.parents[1].name,
                by=by,
                strategy=data["strategy"] if kind == "arm" else data["strategy"].partition("-")[2],
                seed=data["seed"],
                curves={kind: tuple(data[key]) for kind, key in KEYS.items() if key in data},
                select_seconds=float(np.mean(data["select_seconds"][1:])),
                settings=data.get("settings", ""),
            )
        )
    order = {name: place for place, name in enumerate(BATCHES)}
    return sorted(runs, key=lambda run: (order[run.set], run.by != "alloop", run.by, run.strategy, run.seed))


def lines(name: str, runs: Sequence[Run], kind: str) -> list[Line]:
    """Return the lines for one kind of accuracy, the best area first."""
    curves: dict[tuple[str, str], dict[int, Run]] = {}
    for run in (run for run in runs if kind in run.curves):
        curves.setdefault((run.by, run.strategy), {})[run.seed] = run
    random = curves.get(("alloop", "random"), {})
    found = []
    for (by, strategy), of_seed in curves.items():
        seeds = sorted(set(of_seed) & set(random))
        if not seeds:
            continue
        mine = np.array([of_seed[seed].curves[kind] for seed in seeds])
        theirs = np.array([random[seed].curves[kind] for seed in seeds])
        budgets = BATCHES[name] * np.arange(1, mine.shape[1] + 1)
        gaps = [paired_interval(mine[:, place] - theirs[:, place]) for place in range(len(budgets))]
        areas = mine.mean(axis=1)
        found.append(
            Line(
                by=by,
                strategy=strategy,
                n_seeds=len(seeds),
                area=float(areas.mean()),
                area_std=float(areas.std(ddof=1)) if len(seeds) > 1 else float("nan"),
                final=float(mine[:, -1].mean()),
                share=labels_to_reach(mine.mean(axis=0), theirs.mean(axis=0)[-1], budgets) / float(budgets[-1]),
                difference=paired_interval(areas - theirs.mean(axis=1)),
                below=tuple(int(n) for n, (_, _, high) in zip(budgets, gaps, strict=True) if high < 0),
                select_seconds=float(np.mean([of_seed[seed].select_seconds for seed in seeds])),
                settings=of_seed[seeds[0]].settings,
            )
        )
    return sorted(found, key=lambda line: -line.area)


def labels_to_reach(curve: np.ndarray, target: float, budgets: np.ndarray) -> float:
    """Number of labels at which the mean curve first reaches `target`, linear between budgets; infinite if never."""
    reached = np.flatnonzero(curve >= target)
    if not len(reached):
        return float("inf")
    place = int(reached[0])
    if place == 0:
        return float(budgets[0])
    low, high = curve[place - 1], curve[place]
    return float(budgets[place - 1] + (target - low) / (high - low) * (budgets[place] - budgets[place - 1]))


def paired_interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and Student's 95 % interval over seeds; without bounds for a single seed."""
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return mean, float("-inf"), float("inf")
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def markdown(name: str, runs: Sequence[Run]) -> str:
    """Return the tables of a set."""
    titles = {"head": f"one head, C = {C}", "loose": f"one head, C = {LOOSE.get(name)}", "own": "alloop's own model"}
    text = []
    for kind, title in titles.items():
        found = lines(name, runs, kind)
        if found:
            text += [f"\n### {name}: {title}\n", *_table(found)]
    return "\n".join(text)


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Write a line for every run and kind of accuracy, with a column for every batch."""
    rounds = max(len(curve) for run in runs for curve in run.curves.values())
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        batches = [f"after_{number}" for number in range(1, rounds + 1)]
        writer.writerow(["set", "by", "strategy", "settings", "seed", "select_seconds", "accuracy_of", *batches])
        for run in runs:
            for kind, curve in run.curves.items():
                about = [run.set, run.by, run.strategy, run.settings, run.seed, f"{run.select_seconds:.3f}", kind]
                writer.writerow([*about, *(f"{value:.4f}" for value in curve)])


def read_csv(path: Path) -> list[Run]:
    """Read what `write_csv` wrote."""
    curves: dict[tuple[str, ...], dict[str, tuple[float, ...]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = tuple(row[name] for name in ("set", "by", "strategy", "settings", "seed", "select_seconds"))
            curve = tuple(float(value) for name, value in row.items() if name.startswith("after_") and value)
            curves.setdefault(key, {})[row["accuracy_of"]] = curve
    return [
        Run(name, by, strategy, int(seed), found, float(seconds), settings)
        for (name, by, strategy, settings, seed, seconds), found in curves.items()
    ]


def targets(former: Sequence[Run], runs: Sequence[Run], default: str) -> str:
    """Return the table of targets, each met or missed, on the sets and seeds that both sides have.

    Args:
        former: Runs of the former default and of peers; peers' accuracy is that of their own head ("head").
        runs: Runs of the present default, and peers' picks, with alloop's present model ("own").
        default: Name of the default strategy.
    """
    rows = ["| target | set | seeds | found | |", "|---|---|---|---|---|"]
    shares: dict[str, float] = {}
    gaps: dict[str, float] = {}
    for name in BATCHES:
        mine = _curves(runs, name, "own", "alloop", default)
        if not mine:
            continue
        before = _curves(former, name, "own", "alloop", default)
        if seeds := sorted(set(mine) & set(before)):
            end = float(np.mean([before[seed][-1] for seed in seeds]))
            curve = np.mean([mine[seed] for seed in seeds], axis=0)
            budgets = BATCHES[name] * np.arange(1, len(curve) + 1)
            shares[name] = labels_to_reach(curve, end, budgets) / float(budgets[-1])
            reached = f"{shares[name]:.0%} of the labels reach {end:.4f}"
            found = reached if np.isfinite(shares[name]) else f"{end:.4f} not reached; the end is {curve[-1]:.4f}"
            rows.append(
                _row("labels to the former default's end, at most 75 %", name, seeds, found, shares[name] <= 0.75)
            )
        for title, source, kind, least, collected in (
            ("area, best peer's picks with alloop's own model - 0.003", runs, "own", -0.003, gaps),
            ("area, best peer with its own head + 0.030", former, "head", 0.030, None),
        ):
            best = _best_peer(source, name, kind, mine)
            if best is None:
                continue
            peer, seeds, (mean, low, high) = best
            found = f"best peer {peer}: {mean:+.4f}" + (f" [{low:+.3f}, {high:+.3f}]" if len(seeds) > 1 else "")
            rows.append(_row(title, name, seeds, found, mean >= least))
            if collected is not None:
                collected[name] = mean
    if shares:
        mean = float(np.mean(list(shares.values())))
        there = [share for share in shares.values() if np.isfinite(share)]
        found = f"{np.mean(there):.0%} on {len(there)} sets" if there else "on no set"
        found += f", not reached on {len(shares) - len(there)}" if len(there) < len(shares) else ""
        rows.append(_row("labels to the former default's end, at most 55 %", "mean", [], found, mean <= 0.55))
    if gaps:
        mean = float(np.mean(list(gaps.values())))
        title = "area, best peer's picks with alloop's own model + 0.010"
        rows.append(_row(title, "mean", [], f"{mean:+.4f}", mean >= 0.010))
    return "\n".join(rows)


def _curves(runs: Sequence[Run], name: str, kind: str, by: str, strategy: str) -> dict[int, tuple[float, ...]]:
    return {
        run.seed: run.curves[kind]
        for run in runs
        if (run.set, run.by, run.strategy) == (name, by, strategy) and kind in run.curves
    }


def _best_peer(
    runs: Sequence[Run], name: str, kind: str, mine: Mapping[int, tuple[float, ...]]
) -> tuple[str, list[int], tuple[float, float, float]] | None:
    """Return the peer with the highest mean area among those with the most seeds, and the paired difference to it."""
    peers = sorted({(run.by, run.strategy) for run in runs if run.set == name and run.by != "alloop"})
    found = []
    for by, strategy in peers:
        theirs = _curves(runs, name, kind, by, strategy)
        seeds = sorted(set(theirs) & set(mine))
        if seeds:
            area = float(np.mean([theirs[seed] for seed in seeds]))
            difference = np.array([np.mean(mine[seed]) - np.mean(theirs[seed]) for seed in seeds])
            found.append((len(seeds), area, strategy, seeds, paired_interval(difference)))
    if not found:
        return None
    _, _, strategy, seeds, interval = max(found, key=lambda one: one[:3])
    return strategy, seeds, interval


def _row(title: str, name: str, seeds: Sequence[int], found: str, is_met: bool) -> str:
    return f"| {title} | {name} | {len(seeds) or ''} | {found} | **{'met' if is_met else 'missed'}** |"


def _table(found: Sequence[Line]) -> list[str]:
    head = [
        "strategy",
        "by",
        "seeds",
        "area",
        "− random",
        "final",
        "labels to random's end",
        "below random at",
        "select s",
    ]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in found:
        mean, low, high = line.difference
        name = f"**{line.strategy}**" if line.by == "alloop" else line.strategy
        note = f" ({line.settings})" if line.settings else ""
        gap = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if line.n_seeds > 1 else f"{mean:+.3f}"
        cells = [
            name + note,
            line.by,
            f"{line.n_seeds}" + ("" if line.n_seeds == SEEDS else " (!)"),
            f"{line.area:.4f} ± {line.area_std:.4f}" if line.n_seeds > 1 else f"{line.area:.4f}",
            "" if line.strategy == "random" else gap,
            f"{line.final:.3f}",
            f"{line.share:.0%}" if np.isfinite(line.share) else "not reached",
            ", ".join(map(str, line.below)) or ("never" if line.n_seeds > 1 else ""),
            f"{line.select_seconds:.2f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows
