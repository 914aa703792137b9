"""Output of `alloop compare --backbones`: table in the terminal, CSV, JSON and a page on disk."""

from pathlib import Path

from alloop.cli._tables import Lines, for_page, print_lines
from alloop.files import write_json
from alloop.records import Interval
from alloop.report.overview import Page, write_page
from alloop.simulate.compare_trunks import N_FOLDS, TrunkComparison, TrunkRow, TrunksSettings, table_lines, to_json
from alloop.simulate.labeled import LabeledImages
from alloop.simulate.summary import write_csv

UNITS = {"accuracy": ("accuracy %", 100, 1), "nll": ("NLL", 1, 3), "ece": ("ECE %", 100, 1)}


def show(settings: TrunksSettings, data: LabeledImages, comparison: TrunkComparison, page: Path) -> None:
    """Print the table and notes about it on stdout."""
    print_lines(_tables(settings, comparison), _notes(data, comparison), page, left=frozenset({"backbone"}))


def write_results(settings: TrunksSettings, data: LabeledImages, comparison: TrunkComparison) -> Path:
    """Write `backbones.csv`, `backbones.json` and the page `backbones.html`; return the path of the page."""
    page = settings.out / "backbones.html"
    write_csv(settings.out / "backbones.csv", table_lines(comparison))
    write_json(settings.out / "backbones.json", to_json(comparison))
    shown = f"{len(data.images)} labeled images of {len(data.classes)} classes: {', '.join(data.classes[:30])}."
    tables = for_page(_tables(settings, comparison))
    write_page(Page("Trunks compared", [shown, *_notes(data, comparison)], tables, []), page)
    return page


def _tables(settings: TrunksSettings, comparison: TrunkComparison) -> list[Lines]:
    if not comparison.rows:
        return []
    row = comparison.rows[0]
    seeds = f"{row.n_seeds} × " if row.n_seeds > 1 else ""
    title = f"{seeds}{N_FOLDS}-fold cross-validation, {row.n_images} images, {row.n_train} to train on"
    columns = ["backbone", "features", *(name for name, _, _ in UNITS.values()), "ms / image"]
    best = {metric: _best(comparison.rows, metric) for metric in UNITS}
    lines = [
        [
            (row.name, 0),
            (str(row.n_features), 0),
            *((_with_ends(row.metrics[metric], metric), int(row.name == best[metric])) for metric in UNITS),
            (f"{row.milliseconds:.1f}", 0),
        ]
        for row in comparison.rows
    ]
    tables: list[Lines] = [(title, columns, lines)]
    later = [row for row in comparison.rows if row.ahead]
    if later:
        first = settings.contenders[0].name
        differences = [[(row.name, 0), *((_with_ends(row.ahead[m], m, sign="+"), 0) for m in UNITS)] for row in later]
        columns = ["backbone", *(name for name, _, _ in UNITS.values())]
        tables.append((f"Difference to {first} on the same images", columns, differences))
    return tables


def _best(rows: tuple[TrunkRow, ...], metric: str) -> str:
    ordered = sorted(rows, key=lambda row: row.metrics[metric].value, reverse=metric == "accuracy")
    return ordered[0].name if len(rows) > 1 else ""


def _with_ends(interval: Interval, metric: str, sign: str = "") -> str:
    _, scale, digits = UNITS[metric]
    # Adding 0 turns -0.0 into 0.0.
    ends = (round(scale * number, digits) + 0.0 for number in (interval.value, interval.low, interval.high))
    value, low, high = (f"{number:{sign}.{digits}f}" for number in ends)
    return f"{value} [{low}, {high}]"


def _notes(data: LabeledImages, comparison: TrunkComparison) -> list[str]:
    notes = [
        "Each fold is predicted by heads and a calibrator that were fitted without it. Intervals: 95 %, over images; "
        "other training images would move the numbers, too. ¹ best. Time: reading an image and running the trunk, "
        "one process."
    ]
    if data.is_holdout is not None and not data.is_holdout.all():
        notes.append(
            "Labels that a strategy asked for are harder than the pool: all accuracies are lower than on the holdout."
        )
    if comparison.missing:
        notes.append(
            f"Not finished, because time was up: {', '.join(comparison.missing)}. "
            "Run the same command again to continue."
        )
    notes += [f"Failed: {name}: {why}" for name, why in comparison.failed]
    if not comparison.rows:
        notes.append("No trunk is finished yet, so there is no table to show.")
    return notes
