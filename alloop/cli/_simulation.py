"""Output of `alloop simulate`: tables in the terminal, curves and a page on disk."""

import math
from collections.abc import Sequence
from pathlib import Path

from alloop.cli._tables import Lines, for_page, print_lines
from alloop.evaluation.learning_curves import Reached
from alloop.report.curves import Band, draw_bands
from alloop.report.overview import Page, Picture, ReportSection, write_page
from alloop.simulate.curve_table import CurveRow, CurveTable
from alloop.simulate.run import Simulation

SHOWN = 10  # budgets in a table


def show(table: CurveTable, simulation: Simulation, page: Path) -> None:
    """Print the tables on stdout."""
    print_lines(_tables(table), _notes(table, simulation), page, left=frozenset({"strategy"}))


def write_report(table: CurveTable, simulation: Simulation, about: str, out: Path) -> Path:
    """Write the picture and the page with all results; return the path of the page."""
    sections = []
    if table.rows:
        picture = Picture("Accuracy against labels for each strategy", out / "curves.png")
        bands = [Band(row.strategy, row.mean, row.std) for row in table.rows]
        draw_bands(table.budgets, bands, f"Mean of {_seeds(table)}", picture.path)
        sections.append(ReportSection("Learning curves", "", [picture]))
    page = out / "index.html"
    notes = [about, *_notes(table, simulation)]
    write_page(Page("Strategies compared", notes, for_page(_tables(table)), sections), page)
    return page


def _tables(table: CurveTable) -> list[Lines]:
    return [_accuracy(table), _worth(table), _wins(table)] if table.rows else []


def _accuracy(table: CurveTable) -> Lines:
    n = len(table.budgets)
    shown = sorted({round(place * (n - 1) / max(1, min(SHOWN, n) - 1)) for place in range(min(SHOWN, n))})
    columns = [_places([row.mean[place] for row in table.rows], higher=True) for place in shown]
    lines = [
        [(row.strategy, 0)]
        + [
            (f"{100 * row.mean[place]:.1f} ± {100 * row.std[place]:.1f}", marks[number])
            for place, marks in zip(shown, columns, strict=True)
        ]
        for number, row in enumerate(table.rows)
    ]
    tested = " to ".join(str(n) for n in dict.fromkeys((table.n_test[0], table.n_test[-1])))
    title = f"Accuracy, %, at each number of labels ({_seeds(table)}, {tested} images each)"
    return title, ["strategy", *(str(table.budgets[place]) for place in shown)], lines


def _worth(table: CurveTable) -> Lines:
    areas = _places([row.area for row in table.rows], higher=True)
    needs = [math.inf if row.to_match is None else row.to_match.labels for row in table.rows]
    matches = _places(needs, higher=False) if any(map(math.isfinite, needs)) else [0] * len(needs)
    has_rest = any(row.rest is not None for row in table.rows)  # not where a pool was used up, nor with a test set
    lines = []
    for number, row in enumerate(table.rows):
        line = [(row.strategy, 0), (f"{100 * row.area:.1f} ± {100 * row.area_std:.1f}", areas[number])]
        line += [(_ahead(row), 0), (_reached(row.to_match, table.budgets[0]), matches[number])]
        if has_rest:
            line.append(("–" if row.rest is None else f"{100 * row.rest:.1f}", 0))
        lines.append([*line, (f"{row.seconds:.2f}", 0), (f"{row.select_seconds:.2f}", 0)])
    columns = ["strategy", "area %", "final gain over random, pp", "labels to match random"]
    columns += ["rest %"] if has_rest else []
    return "Value of each strategy", [*columns, "s / round", "s to choose"], lines


def _wins(table: CurveTable) -> Lines:
    lines = [
        [
            (f"{i + 1} {row.strategy}", 0),
            *(("–" if i == j else f"{100 * table.wins[i][j]:.0f}", 0) for j in range(len(table.rows))),
        ]
        for i, row in enumerate(table.rows)
    ]
    columns = ["strategy", *(str(i + 1) for i in range(len(table.rows)))]
    return "Seeds and later budgets at which the row is better than the column, %", columns, lines


def _ahead(row: CurveRow) -> str:
    if row.ahead is None:
        return "–"
    mean, low, high = (100 * value for value in row.ahead[-1])
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _reached(found: Reached | None, first: int) -> str:
    if found is None:
        return "–"
    if found.high <= first:
        return f"at most {first}"  # no smaller budget was measured
    if found.labels == math.inf:
        return "not reached" if found.low == math.inf else f"not reached [{found.low:.0f}, –]"
    high = "not reached" if found.high == math.inf else f"{found.high:.0f}"
    return f"{found.labels:.0f} [{found.low:.0f}, {high}]"


def _places(values: Sequence[float], *, higher: bool) -> list[int]:
    """Return 1 for the best value, 2 for the second best, 0 for the others."""
    best = sorted(set(values), reverse=higher)[:2] if len(values) > 1 else []
    return [best.index(value) + 1 if value in best and math.isfinite(value) else 0 for value in values]


def _notes(table: CurveTable, simulation: Simulation) -> list[str]:
    notes = [
        "Mean ± standard deviation over seeds (ddof 0). ¹ best, ² second best. Area: mean height of the curve. "
        "Intervals: 95 %, bootstrap over seeds, paired; with a few seeds they are rough."
    ]
    if table.rows and all(row.to_match is None for row in table.rows):
        notes.append("No strategy is compared with random, because random was not simulated.")
    if simulation.missing:
        names = ", ".join(f"{strategy}/{seed}" for strategy, seed in simulation.missing)
        notes.append(
            f"Not started, because time was up (strategy/seed): {names}. Run the same command again to continue."
        )
    notes += [f"Failed: {strategy}, seed {seed}: {why}" for strategy, seed, why in simulation.failed]
    if not table.rows:
        notes.append("No seed has finished for every strategy yet, so there is no table to show.")
    return notes


def _seeds(table: "CurveTable") -> str:
    return f"{len(table.seeds)} seed{'s' * (len(table.seeds) != 1)}"
