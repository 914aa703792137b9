"""Tables of a comparison: mean ± std over seeds, ranks and times, also as CSV and JSON."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from alloop.evaluation.ranks import average_rank
from alloop.files import write_bytes, write_json
from alloop.simulate.compare import RAW, Comparison, MethodCell
from alloop.simulate.methods import BASELINE

Key = TypeVar("Key")
SHOWN = {"accuracy": True, "ece": False, "nll": False, "brier": False}  # metric → higher is better
OOD_SHOWN = {"auroc": True, "fpr95": False, "fpr95_id": False, "aupr_out": True, "aupr_in": True}
RANKED = ("accuracy", "ece", "nll")


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean over seeds, with standard deviation (ddof = 0, as in papers). `place` is 1 or 2 for the two best, else 0."""

    mean: float
    std: float
    place: int = 0


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """Results of one method.

    Attributes:
        stages: "raw" and each calibrator → metric → mean.
        ranks: Stage → mean rank in accuracy, ECE and NLL.
        train_seconds: Mean training time.
        score_milliseconds: Mean scoring time of one image, with the trunk.
        train_ratio, score_ratio: Times relative to the single head; None if it was not compared.
        ece_interval: Bootstrap 95 % interval of the ECE of the first seed, before calibration.
    """

    method: str
    summary: str
    n_seeds: int
    n_test: int
    stages: Mapping[str, Mapping[str, Mean]]
    ranks: Mapping[str, float]
    train_seconds: float
    score_milliseconds: float
    train_ratio: float | None
    score_ratio: float | None
    ece_interval: tuple[float, float]


def summarize(comparison: Comparison) -> tuple[MethodRow, ...]:
    """Return a row for every method with cells, over the seeds that all of these methods have.

    Without a common seed there are no rows. Methods without cells are ignored.
    """
    by_method = {
        method.name: {cell.seed: cell for cell in comparison.cells if cell.method == method.name}
        for method in comparison.methods
    }
    present = {name: cells for name, cells in by_method.items() if cells}
    common = sorted(set.intersection(*(set(cells) for cells in present.values()))) if present else []
    if not common:
        return ()
    used = {name: [cells[seed] for seed in common] for name, cells in present.items()}
    stages = _stages(used)
    ranks = _ranks(stages)
    base = used.get(BASELINE)
    summaries = {method.name: method.summary for method in comparison.methods}
    return tuple(_row(name, summaries[name], used[name], stages[name], ranks[name], base) for name in used)


def summarize_ood(comparison: Comparison) -> dict[tuple[str, str], dict[str, Mean]]:
    """Return (method, score) → metric → mean over seeds. The two best of each metric are marked."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for cell in comparison.cells:
        for score, found in cell.ood.items():
            for metric in OOD_SHOWN:
                values.setdefault((cell.method, score), {}).setdefault(metric, []).append(found.metrics[metric])
    means = {key: {m: statistics.fmean(mine) for m, mine in row.items()} for key, row in values.items()}
    places = {
        metric: _places({key: row[metric] for key, row in means.items()}, higher=higher)
        for metric, higher in OOD_SHOWN.items()
    }
    return {
        key: {m: Mean(means[key][m], statistics.pstdev(mine), places[m][key]) for m, mine in row.items()}
        for key, row in values.items()
    }


def write_tables(comparison: Comparison, rows: Sequence[MethodRow], out: Path) -> tuple[Path, Path, Path]:
    """Write `cells.csv` (per cell and stage), `summary.csv` (per method and stage), `comparison.json` (everything).

    With strange images, also write `ood.csv`, a line per cell and score.
    """
    paths = out / "cells.csv", out / "summary.csv", out / "comparison.json"
    write_csv(paths[0], [line for cell in comparison.cells for line in _cell_lines(cell)])
    write_csv(paths[1], [line for row in rows for line in _summary_lines(row)])
    write_json(paths[2], to_json(comparison, rows))
    strange = [
        {
            "method": cell.method,
            "seed": cell.seed,
            "score": name,
            **{m: f"{v:.6g}" for m, v in score.metrics.items()},
            **_ends(score.intervals),
        }
        for cell in comparison.cells
        for name, score in cell.ood.items()
    ]
    if strange:
        write_csv(out / "ood.csv", strange)
    return paths


def to_json(comparison: Comparison, rows: Sequence[MethodRow]) -> dict[str, Any]:
    """Convert to plain data: the table, all cells with their reliability bins, and missing or failed cells."""
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "cells": [dataclasses.asdict(cell) for cell in comparison.cells],
        "missing": [{"method": method, "seed": seed} for method, seed in comparison.missing],
        "failed": [{"method": method, "seed": seed, "reason": why} for method, seed, why in comparison.failed],
    }


def _stages(used: Mapping[str, Sequence[MethodCell]]) -> dict[str, dict[str, dict[str, Mean]]]:
    """Return method → stage → metric → mean, with places among the methods."""
    names = list(next(iter(used.values()))[0].stages)
    metrics = list(next(iter(used.values()))[0].stages[RAW].metrics)
    table: dict[str, dict[str, dict[str, Mean]]] = {method: {name: {} for name in names} for method in used}
    for name in names:
        for metric in metrics:
            values = {m: [cell.stages[name].metrics[metric] for cell in cells] for m, cells in used.items()}
            means = {m: statistics.fmean(mine) for m, mine in values.items()}
            places = _places(means, higher=SHOWN.get(metric, False))
            for m, mine in values.items():
                table[m][name][metric] = Mean(means[m], statistics.pstdev(mine), places[m])
    return table


def _places(means: Mapping[Key, float], *, higher: bool) -> dict[Key, int]:
    """Return 1 for the best, 2 for the second best, else 0. Equal values share a place."""
    best = sorted(set(means.values()), reverse=higher)[:2] if len(means) > 1 else []
    return {method: best.index(value) + 1 if value in best else 0 for method, value in means.items()}


def _ranks(stages: Mapping[str, Mapping[str, Mapping[str, Mean]]]) -> dict[str, dict[str, float]]:
    names = list(next(iter(stages.values())))
    found: dict[str, dict[str, float]] = {method: {} for method in stages}
    for name in names:
        values = np.array([[stages[method][name][metric].mean for metric in RANKED] for method in stages])
        for method, rank in zip(stages, average_rank(values).tolist(), strict=True):
            found[method][name] = rank
    return found


def _row(
    name: str,
    summary: str,
    cells: Sequence[MethodCell],
    stages: Mapping[str, Mapping[str, Mean]],
    ranks: Mapping[str, float],
    base: Sequence[MethodCell] | None,
) -> MethodRow:
    train = statistics.fmean(cell.train_seconds for cell in cells)
    score = statistics.fmean(cell.score_seconds for cell in cells)
    return MethodRow(
        method=name,
        summary=summary,
        n_seeds=len(cells),
        n_test=cells[0].n_test,
        stages=stages,
        ranks=ranks,
        train_seconds=train,
        score_milliseconds=1000 * score,
        train_ratio=train / statistics.fmean(cell.train_seconds for cell in base) if base else None,
        score_ratio=score / statistics.fmean(cell.score_seconds for cell in base) if base else None,
        ece_interval=cells[0].stages[RAW].intervals["ece"],
    )


def _cell_lines(cell: MethodCell) -> list[dict[str, object]]:
    start = {
        "method": cell.method, "seed": cell.seed, "n_train": cell.n_train, "n_calibration": cell.n_calibration,
        "n_test": cell.n_test,
    }  # fmt: skip
    times = {"train_seconds": f"{cell.train_seconds:.3f}", "score_milliseconds": f"{1000 * cell.score_seconds:.4f}"}
    return [
        {
            **start,
            "stage": name,
            **{metric: f"{value:.6g}" for metric, value in stage.metrics.items()},
            **_ends(stage.intervals),
            **times,
        }
        for name, stage in cell.stages.items()
    ]


def _ends(intervals: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    return {
        f"{metric}_{end}": f"{value:.6g}"
        for metric, bounds in intervals.items()
        for end, value in zip(("low", "high"), bounds, strict=True)
    }


def _summary_lines(row: MethodRow) -> list[dict[str, object]]:
    return [
        {
            "method": row.method,
            "stage": name,
            "seeds": row.n_seeds,
            **{f"{key}_{end}": f"{getattr(mean, end):.6g}" for key, mean in metrics.items() for end in ("mean", "std")},
            "rank": f"{row.ranks[name]:.3f}",
            "train_seconds": f"{row.train_seconds:.3f}",
            "score_milliseconds": f"{row.score_milliseconds:.4f}",
            "train_ratio": "" if row.train_ratio is None else f"{row.train_ratio:.3f}",
            "score_ratio": "" if row.score_ratio is None else f"{row.score_ratio:.3f}",
        }
        for name, metrics in row.stages.items()
    ]


def write_csv(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Write lines with the same keys as CSV; without lines, write an empty file."""
    text = io.StringIO()
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    write_bytes(path, text.getvalue().encode())
