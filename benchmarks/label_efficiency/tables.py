"""Tables of finished runs: areas, labels to match random, and budgets at which a strategy is below random."""

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
