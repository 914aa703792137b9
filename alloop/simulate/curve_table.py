"""Results of a simulation: curves of the strategies, and comparisons between them."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alloop.composition import strategy_name
from alloop.errors import LabelError
from alloop.evaluation.learning_curves import Curves, Reached, area, difference, labels_to_match, wins
from alloop.seeds import derive_seed
from alloop.simulate.run import Simulation, StrategyCell
from alloop.simulate.summary import write_csv

RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class CurveRow:
    """Results of a strategy over the seeds that all strategies have. Standard deviations are over seeds (ddof 0).

    Attributes:
        mean, std: Accuracy at each budget.
        area, area_std: Mean height of the curves.
        to_match: Number of labels at which it matches random's final accuracy; None if random was not simulated.
        ahead: Mean difference to random at each budget, with its interval as (mean, low, high); None without random.
        seconds, select_seconds: Seconds of a whole round, and of choosing alone.
    """

    strategy: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    area: float
    area_std: float
    to_match: Reached | None
    ahead: tuple[tuple[float, float, float], ...] | None
    seconds: float
    select_seconds: float
    rest: float | None


@dataclasses.dataclass(frozen=True)
class CurveTable:
    """Content of the report.

    Attributes:
        budgets: Number of labels after each round.
        wins: Entry [i][j] is the share of seeds and budgets (without the first) at which row i is better than row j.
        n_test: Numbers of images measured on, which may differ between seeds.
    """

    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    rows: tuple[CurveRow, ...]
    wins: tuple[tuple[float, ...], ...]
    n_test: tuple[int, ...]


def tabulate(simulation: Simulation) -> CurveTable:
    """Tabulate the seeds that all strategies with cells have, up to the round that all of them reached.

    Raises:
        LabelError: A run has no round, because there was no image to ask about.
    """
    by_arm: dict[str, dict[int, StrategyCell]] = {name: {} for name in simulation.arms}
    for cell in simulation.cells:
        by_arm[cell.strategy][cell.seed] = cell
    present = {name: cells for name, cells in by_arm.items() if cells}
    seeds = sorted(set.intersection(*(set(cells) for cells in present.values()))) if present else []
    if not seeds:
        return CurveTable((), (), (), (), ())
    used = {name: [cells[seed] for seed in seeds] for name, cells in present.items()}
    every = [cell for cells in used.values() for cell in cells]
    shortest = min(every, key=lambda cell: len(cell.accuracy))
    n_rounds = len(shortest.accuracy)
    if n_rounds == 0:
        raise LabelError(
            f"{shortest.strategy}, seed {shortest.seed}: no image could be asked about ({shortest.ended}).",
            "Leave images outside of the test set and the holdout, and let [acquisition] only match some of them.",
        )
    first = max(every, key=lambda cell: len(cell.picks))
    budgets = tuple(itertools.accumulate(len(batch) for batch in first.picks[:n_rounds]))
    curves = {name: np.array([cell.accuracy[:n_rounds] for cell in cells]) for name, cells in used.items()}
    reference = next((curves[name] for name in curves if strategy_name(name) == RANDOM), None)
    rows = tuple(_row(name, used[name], budgets, curves[name], reference) for name in used)
    # Not where all strategies have the same labels.
    later = {name: mine[:, 1:] if n_rounds > 1 else mine for name, mine in curves.items()}
    won = tuple(tuple(wins(later[one], later[other]) for other in used) for one in used)
    return CurveTable(budgets, tuple(seeds), rows, won, tuple(sorted({cell.n_test for cell in every})))


def _row(
    name: str, cells: Sequence[StrategyCell], budgets: Sequence[int], curves: Curves, reference: Curves | None
) -> CurveRow:
    x = np.array(budgets, dtype=np.float64)
    areas = area(x, curves)
    # All strategies use the same draws of seeds, so that their intervals are comparable.
    draws = [np.random.default_rng(derive_seed(0, "simulate", "bootstrap", use)) for use in ("match", "ahead")]
    ahead = None
    if reference is not None:
        parts = [part.tolist() for part in difference(curves, reference, draws[1])]
        ahead = tuple(zip(*parts, strict=True))
    rest = [cell.rest for cell in cells if cell.rest is not None]
    return CurveRow(
        strategy=name,
        mean=tuple(curves.mean(axis=0).tolist()),
        std=tuple(curves.std(axis=0).tolist()),
        area=float(areas.mean()),
        area_std=float(areas.std()),
        to_match=None if reference is None else labels_to_match(x, curves, reference, draws[0]),
        ahead=ahead,
        seconds=float(np.mean([second for cell in cells for second in cell.seconds])),
        select_seconds=float(np.mean([second for cell in cells for second in cell.select_seconds])),
        rest=float(np.mean(rest)) if rest else None,
    )


def table_json(table: CurveTable) -> dict[str, Any]:
    """Return the table as plain data for JSON.

    The number of labels for a target that was not reached is infinite in the table and null in JSON.
    """
    data = dataclasses.asdict(table)
    for row in data["rows"]:
        if row["to_match"] is not None:
            row["to_match"] = {key: _finite(value) for key, value in row["to_match"].items()}
    return data


def write_tables(simulation: Simulation, table: CurveTable, out: Path) -> None:
    """Write `runs.csv` (a line per run and round) and `strategies.csv` (a line per strategy)."""
    write_csv(out / "runs.csv", [line for cell in simulation.cells for line in _lines(cell)])
    write_csv(out / "strategies.csv", [_line(row) for row in table.rows])


def _lines(cell: StrategyCell) -> list[dict[str, object]]:
    asked = itertools.accumulate(len(batch) for batch in cell.picks)
    return [
        {
            "strategy": cell.strategy,
            "seed": cell.seed,
            "round": number + 1,
            "asked": total,
            "labels": cell.n_labels[number],
            "accuracy": f"{cell.accuracy[number]:.6g}",
            "n_test": cell.n_test,
            "seconds": f"{cell.seconds[number]:.3f}",
            "select_seconds": f"{cell.select_seconds[number]:.3f}",
            "score_seconds": f"{cell.score_seconds[number]:.3f}",
            "train_seconds": f"{cell.train_seconds[number]:.3f}",
        }
        for number, total in enumerate(asked)
    ]


def _line(row: CurveRow) -> dict[str, object]:
    match = row.to_match
    return {
        "strategy": row.strategy,
        "area": f"{row.area:.6g}",
        "area_std": f"{row.area_std:.6g}",
        "last": f"{row.mean[-1]:.6g}",
        "last_std": f"{row.std[-1]:.6g}",
        **{
            f"labels_to_random{end}": "" if match is None or value == math.inf else f"{value:.1f}"
            for end, value in (
                ("", match.labels if match else math.inf),
                ("_low", match.low if match else math.inf),
                ("_high", match.high if match else math.inf),
            )
        },
        "seconds": f"{row.seconds:.3f}",
        "select_seconds": f"{row.select_seconds:.3f}",
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
