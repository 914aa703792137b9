"""`alloop status`: the state of the project on one screen."""

from typing import TYPE_CHECKING

import click

from alloop.cli._options import Session, common_options

if TYPE_CHECKING:
    from alloop.records import Interval
    from alloop.report.gather import RoundReport, StatusReport
    from alloop.report.shown import Shown


H = "H is the mean entropy of the batch in nats: chosen by the strategy | drawn at random."


@click.command()
@common_options
def status(session: Session) -> None:
    """Show rounds, accuracy, pending tasks and labels per person."""
    from alloop.cli._tables import print_table, print_text
    from alloop.report.gather import describe_measured, gather_status, to_json
    from alloop.report.shown import TASKS

    project = session.project()
    report, shown = gather_status(project), TASKS[project.config.project.task]
    if session.as_json:
        session.show(to_json(report))
        return
    print_text(_headline(report))
    if report.rounds:
        titles = (metric.title for metric in shown.metrics)
        columns = ["round", "state", "labels", "N", *titles, "H", "answered"]
        print_table(("", columns, _rounds(report.rounds, shown)), left=frozenset({"state"}), is_plain=True)
        print_text(f"{shown.explained.format(measured=describe_measured(report.findings))} {H}", style="dim")
    auto = [] if report.auto is None else [report.auto.says]
    for line in _findings(report, shown) + _people(report) + auto + _attention(report):
        print_text(line)


def _headline(report: "StatusReport") -> str:
    pool = report.pool
    return (
        f"{report.name}: {pool.images} images ({pool.groups} different), {pool.labeled} labeled "
        f"({pool.labeled - pool.holdout_labeled} to train on, {pool.holdout_labeled} of {pool.holdout} holdout), "
        f"{pool.open} being asked"
    )


def _rounds(rounds: "tuple[RoundReport, ...]", shown: "Shown") -> list[list[tuple[str, int]]]:
    lines = []
    for row in rounds:
        primary = row.metrics.get(shown.metrics[0].name)
        cells = (
            str(row.number),
            row.state,
            "-" if row.n_labels is None else str(row.n_labels),
            "-" if primary is None else str(primary.n),
            *(_interval(row.metrics.get(metric.name), metric.factor, metric.digits) for metric in shown.metrics),
            f"{_entropy(row.entropy_acquired)} | {_entropy(row.entropy_random)}",
            f"{row.queries.get('answered', 0)}/{sum(row.queries.values())}",
        )
        lines.append([(cell, 0) for cell in cells])
    return lines


def _findings(report: "StatusReport", shown: "Shown") -> list[str]:
    """Return sentences about the results of the rounds and the stop rules."""
    from alloop.loop.stopping import percent
    from alloop.report.gather import describe_people

    found = report.findings
    lines = [part.says for part in (found.better, found.unbiased, found.outlook) if part is not None]
    if found.matched is not None:
        lines.insert(1 if found.better else 0, found.matched["says"])
    if found.grown is not None:
        lines.append(
            f"Accuracy on the {found.grown.n} holdout images drawn later, from those unlabeled then: "
            f"{percent(found.grown)}. They are not in the table."
        )
    if found.pool_brings is not None:
        lines.append(found.pool_brings.says)
    if report.rounds:
        lines.append("Stop rules (`alloop run` stops when one with * holds):")
        lines += [f"{'*' if rule.stops else ' '} {rule.standing}: {rule.because}" for rule in found.rules]
    if any(shown.metrics[0].name in row.metrics for row in report.rounds):
        lines.append(describe_people(found))
    return lines


def _people(report: "StatusReport") -> list[str]:
    lines = []
    for name, counts in report.annotators.items():
        other = ", ".join(f"{n} {kind}" for kind, n in counts.items() if kind != "label")
        lines.append(f"{name}: {counts.get('label', 0)} labels" + (f", {other}" if other else ""))
    if report.class_counts:
        lines.append("Labels to train on: " + ", ".join(f"{name} {n}" for name, n in report.class_counts.items()))
    return lines


def _choice(report: "StatusReport") -> list[str]:
    """Name the strategy that chose the newest batch, with its notes."""
    chosen = [row for row in report.rounds if row.strategy is not None]
    if not chosen:
        return []
    return [" ".join((f"Round {chosen[-1].number} was chosen by {chosen[-1].strategy}.", *chosen[-1].notes))]


def _attention(report: "StatusReport") -> list[str]:
    lines = _choice(report)
    measured = [row for row in report.rounds if row.model is not None]
    if measured:
        lines.append(_calibration(measured[-1]))
    lines += report.attention
    if report.rounds and report.rounds[-1].closed_because:
        lines.append(f"Round {report.rounds[-1].number} closed: {report.rounds[-1].closed_because}.")
    return lines


def _calibration(row: "RoundReport") -> str:
    """Describe the calibrator, its number of labels, and the NLL before and after on images it was not fitted to."""
    words = f"Calibrated by {row.calibration} on {row.n_calibration} holdout labels."
    if "nll_uncalibrated" in row.metrics:
        before, after = (_interval(row.metrics.get(name), 1, 3) for name in ("nll_uncalibrated", "nll"))
        words += f" NLL {before} before, {after} after."
    return f"{words} {row.calibration_note}".rstrip()


def _interval(interval: "Interval | None", factor: float, digits: int) -> str:
    if interval is None:
        return "-"
    value, low, high = (f"{factor * number:.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _entropy(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
