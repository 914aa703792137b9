"""Report of a project as one HTML file: the content of `alloop status`, with pictures."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from alloop.loop.measuring.findings import Findings, learning_curve, read_last_holdout
from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.loop.stopping import percent
from alloop.project import Project
from alloop.records import CurvePoint, Interval
from alloop.report.calibration import ReliabilityData, draw_reliability
from alloop.report.curves import draw_curves
from alloop.report.gather import (
    RoundReport,
    StatusReport,
    describe_by_hand,
    describe_measured,
    describe_people,
    gather_status,
)
from alloop.report.overview import Page, Picture, ReportSection, ReportTable, TableCell, write_page
from alloop.report.shown import TASKS, Shown
from alloop.store.session import reading


def write_report(project: Project, path: Path) -> Path:
    """Gather the numbers, draw the pictures and write the report.

    Returns:
        Path of the page.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    status = gather_status(project)
    with reading(project.database) as session:
        curve, holdout = learning_curve(session, project), read_last_holdout(session, project)
    with tempfile.TemporaryDirectory(prefix="alloop-") as folder:
        shown = TASKS[project.config.project.task]
        write_page(make_page(status, shown, _pictures(Path(folder), status, shown, curve, holdout)), path)
    return path


def make_page(status: StatusReport, shown: Shown, sections: Sequence[ReportSection] = ()) -> Page:
    """Return the page with words, tables and pictures."""
    pool, found = status.pool, status.findings
    notes = [
        f"{pool.images} images ({pool.groups} different), {pool.labeled} labeled: "
        f"{pool.labeled - pool.holdout_labeled} to train on, {pool.holdout_labeled} of {pool.holdout} holdout.",
        *([] if status.auto is None else [status.auto.says]),
        *describe_by_hand(status),
        *_sentences(found),
    ]
    if any(row.metrics for row in status.rounds):
        notes.append(f"Metrics are measured {describe_measured(found)}, with 95 % intervals. {describe_people(found)}")
    tables = [_rounds(status.rounds, shown), _rules(found), _classes(status), _annotators(status)]
    return Page(f"{status.name}: report", notes, [table for table in tables if table.rows], sections)


def reliability(holdout: HoldoutPredictions, shown: Shown, title: str, ece: Interval | None) -> ReliabilityData | None:
    """Return the reliability diagram of the last model on the first holdout; None without probabilities or images."""
    bins = shown.reliability(holdout)
    if bins is None:
        return None
    return ReliabilityData(
        title=title,
        count=bins.count.tolist(),
        confidence=[None if math.isnan(value) else value for value in bins.confidence.tolist()],
        accuracy=[None if math.isnan(value) else value for value in bins.accuracy.tolist()],
        ece_interval=None if ece is None else (ece.low, ece.high),
    )


def _sentences(found: Findings) -> list[str]:
    said = [part.says for part in (found.better, found.unbiased, found.outlook) if part is not None]
    if found.matched is not None:
        said.insert(0, f"{found.matched['says']} (Round {found.matched['round']}.)")
    if found.grown is not None:
        said.append(
            f"Accuracy on the {found.grown.n} holdout images drawn later, from those unlabeled then: "
            f"{percent(found.grown)}."
        )
    if found.pool_brings is not None:
        said.append(found.pool_brings.says)
    return said


def _pictures(
    folder: Path,
    status: StatusReport,
    shown: Shown,
    curve: Sequence[CurvePoint],
    holdout: HoldoutPredictions | None,
) -> list[ReportSection]:
    sections = []
    if curve:
        path = folder / "curve.png"
        draw_curves({status.name: curve}, "Learning curve", path)
        words = ", ".join(f"{point.n_labels} labels {percent(point.accuracy)}" for point in curve)
        sections.append(ReportSection("Learning curve", "", [Picture(f"Holdout accuracy: {words}", path)]))
    measured = [row for row in status.rounds if row.metrics]
    if holdout is not None and measured:
        data = reliability(holdout, shown, f"{measured[-1].model}", measured[-1].metrics.get("ece"))
        if data is not None:
            path = folder / "reliability.png"
            draw_reliability([data], path)
            text = "Accuracy of the last model by its confidence. The bars of a calibrated model end on the diagonal."
            picture = Picture(f"Reliability diagram, ECE {100 * data.ece:.1f} %, {data.n} images", path)
            sections.append(ReportSection("Reliability of the last model", text, [picture]))
    return sections


def _rounds(rounds: Sequence[RoundReport], shown: Shown) -> ReportTable:
    titles = (metric.title for metric in shown.metrics)
    columns = ("round", "state", "labels", "N", *titles, "answered", "closed because")
    rows = []
    for row in rounds:
        primary = row.metrics.get(shown.metrics[0].name)
        texts = (
            str(row.number),
            row.state,
            "–" if row.n_labels is None else str(row.n_labels),
            "–" if primary is None else str(primary.n),
            *(_number(row.metrics.get(metric.name), metric.factor, metric.digits) for metric in shown.metrics),
            f"{row.queries.get('answered', 0)}/{sum(row.queries.values())}",
            row.closed_because or "",
        )
        rows.append([TableCell(text) for text in texts])
    return ReportTable("Rounds", columns, rows)


def _rules(found: Findings) -> ReportTable:
    rows = [
        [
            TableCell(rule.name),
            TableCell(rule.standing.value),
            TableCell("yes" if rule.stops else "no"),
            TableCell(rule.because),
        ]
        for rule in found.rules
    ]
    return ReportTable("Stop rules", ("rule", "says", "stops the loop", "evidence"), rows)


def _classes(status: StatusReport) -> ReportTable:
    columns = {"to train on": status.class_counts, "holdout": status.class_counts_holdout}
    if status.auto is not None:
        columns["automatic, by no person"] = status.auto.classes
    rows = [
        [TableCell(name), *(TableCell(str(counts.get(name, 0))) for counts in columns.values())]
        for name in status.classes
    ]
    return ReportTable("Labels per class", ("class", *columns), rows)


def _annotators(status: StatusReport) -> ReportTable:
    rows = [
        [
            TableCell(name),
            TableCell(str(counts.get("label", 0))),
            TableCell(str(counts.get("skip", 0))),
            TableCell(str(counts.get("empty", 0))),
        ]
        for name, counts in status.annotators.items()
    ]
    return ReportTable("Who labeled how many", ("annotator", "labels", "skipped", "empty"), rows)


def _number(interval: Interval | None, factor: float, digits: int) -> str:
    if interval is None:
        return "–"
    value, low, high = (f"{factor * number:.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"
