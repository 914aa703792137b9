"""Output of `alloop compare`: tables in the terminal, pictures and a page on disk."""

from pathlib import Path

from alloop.cli._tables import Lines, for_page, print_lines
from alloop.report.calibration import ReliabilityData, ScoreHistogram, draw_confidence, draw_ood, draw_reliability
from alloop.report.overview import Page, Picture, ReportSection, write_page
from alloop.simulate.compare import CompareSettings, Comparison
from alloop.simulate.compare import MethodCell as Measured
from alloop.simulate.labeled import LabeledImages
from alloop.simulate.methods import Method
from alloop.simulate.summary import MethodRow, summarize_ood

UNITS = {"accuracy": ("ACC %", 100, 1), "ece": ("ECE %", 100, 1), "nll": ("NLL", 1, 3), "brier": ("Brier", 1, 3)}


def _columns() -> list[str]:
    return ["method", *(title for title, _, _ in UNITS.values()), "rank", "train s (×)", "score ms/image (×)"]


def _cells(row: MethodRow, stage: str) -> list[tuple[str, int]]:
    """Return (text, place) for each cell of a line of the table."""
    cells = [(row.method, 0)]
    for metric, (_, scale, digits) in UNITS.items():
        mean = row.stages[stage][metric]
        cells.append((f"{scale * mean.mean:.{digits}f} ± {scale * mean.std:.{digits}f}", mean.place))
    cells.append((f"{row.ranks[stage]:.1f}", 0))
    cells.append((_with_ratio(f"{row.train_seconds:.1f}", row.train_ratio), 0))
    cells.append((_with_ratio(f"{row.score_milliseconds:.2f}", row.score_ratio), 0))
    return cells


def _with_ratio(text: str, ratio: float | None) -> str:
    return text if ratio is None else f"{text} ({ratio:.2f})"


def _titles(settings: CompareSettings, rows: tuple[MethodRow, ...]) -> dict[str, str]:
    seeds = f"{rows[0].n_seeds} seeds, {rows[0].n_test} images each" if rows else ""
    after = {name: f"After {name} ({seeds})" for name in settings.calibrators}
    return {"raw": f"Without post-hoc calibration ({seeds})", **after}


def _notes(comparison: Comparison, rows: tuple[MethodRow, ...]) -> list[str]:
    notes = ["Mean ± standard deviation over seeds (ddof 0). ¹ best, ² second best. Rank: mean over ACC, ECE, NLL."]
    if rows and rows[0].n_test < 1000:
        low, high = (100 * end for end in rows[0].ece_interval)
        notes.append(
            f"ECE on {rows[0].n_test} images is uncertain and biased upwards, so small differences mean nothing. "
            f"Example: 95 % interval of {rows[0].method}, seed 0: [{low:.1f}, {high:.1f}] (bootstrap)."
        )
    if comparison.missing:
        names = ", ".join(sorted({f"{method}/{seed}" for method, seed in comparison.missing}))
        notes.append(
            f"Not started, because time was up (method/seed): {names}. Run the same command again to continue."
        )
    notes += [f"Failed: {method}, seed {seed}: {why}" for method, seed, why in comparison.failed]
    if not rows:
        notes.append("No seed has finished for every method yet, so there is no table to show.")
    return notes


OOD_UNITS = {"auroc": "AUROC", "fpr95": "FPR95", "fpr95_id": "FPR95 (in)", "aupr_out": "AUPR out", "aupr_in": "AUPR in"}
OOD_TITLE = "Detection of strange images among test images, % (mean ± std; FPR95: strange is positive)"


def _ood_lines(comparison: Comparison) -> list[list[tuple[str, int]]]:
    return [
        [(method, 0), (score, 0)]
        + [(f"{100 * row[m].mean:.1f} ± {100 * row[m].std:.1f}", row[m].place) for m in OOD_UNITS]
        for (method, score), row in summarize_ood(comparison).items()
    ]


def _tables(settings: CompareSettings, comparison: Comparison, rows: tuple[MethodRow, ...]) -> list[Lines]:
    found = [
        (title, _columns(), [_cells(row, stage) for row in rows]) for stage, title in _titles(settings, rows).items()
    ]
    strange = _ood_lines(comparison)
    if strange:
        found.append((OOD_TITLE, ["method", "score", *OOD_UNITS.values()], strange))
    return found if rows else []


def print_tables(settings: CompareSettings, comparison: Comparison, rows: tuple[MethodRow, ...], page: Path) -> None:
    """Print the tables and notes about them on stdout."""
    print_lines(_tables(settings, comparison, rows), _notes(comparison, rows), page)


def write_report(
    settings: CompareSettings, data: LabeledImages, comparison: Comparison, rows: tuple[MethodRow, ...]
) -> Path:
    """Write the pictures of every method and the page with all results; return the path of the page."""
    tables = for_page(_tables(settings, comparison, rows))
    firsts = {cell.method: cell for cell in sorted(comparison.cells, key=lambda cell: -cell.seed)}
    sections = [
        _section(method, firsts[method.name], settings.out) for method in comparison.methods if method.name in firsts
    ]
    shown = f"{len(data.images)} labeled images of {len(data.classes)} classes: {', '.join(data.classes[:30])}."
    if settings.strangers:
        shown += f" {len(settings.strangers)} strange images."
    page = settings.out / "index.html"
    write_page(Page("Methods compared", [shown, *_notes(comparison, rows)], tables, sections), page)
    return page


def _section(method: Method, cell: Measured, out: Path) -> ReportSection:
    """Draw the pictures of a method."""
    stem = method.name.replace("/", "+")
    pictures = [
        Picture(f"Reliability of {method.name}", out / f"reliability-{stem}.png"),
        Picture(f"Confidence of {method.name}", out / f"confidence-{stem}.png"),
    ]
    panels = _panels(cell)
    draw_reliability(panels, pictures[0].path)
    draw_confidence(panels, pictures[1].path)
    if cell.ood:
        pictures.append(Picture(f"Strange images by each score of {method.name}", out / f"ood-{stem}.png"))
        histograms = [ScoreHistogram(n, s.edges, s.inside, s.outside, s.metrics["auroc"]) for n, s in cell.ood.items()]
        draw_ood(histograms, method.name, pictures[2].path)
    return ReportSection(method.name, f"{method.summary}. The pictures are of seed {cell.seed}.", pictures)


def _panels(cell: Measured) -> list[ReliabilityData]:
    return [
        ReliabilityData(
            title=f"{cell.method}, {'raw' if name == 'raw' else f'after {name}'}",
            count=stage.count,
            confidence=stage.confidence,
            accuracy=stage.accuracy,
            ece_interval=stage.intervals["ece"],
        )
        for name, stage in cell.stages.items()
    ]
