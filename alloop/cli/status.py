"""`alloop status`: the state of the project on one screen."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from alloop.cli._options import Session, common_options

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from alloop.cli._tables import Lines
    from alloop.report.gather import RoundReport, StatusReport
    from alloop.report.shown import Shown

WATCH_EVERY = 5.0  # seconds
LEFT = frozenset({"state"})
H = "H is the mean entropy of the batch in nats: chosen by the strategy | drawn at random."


@click.command()
@click.option(
    "--watch",
    type=click.FloatRange(min=0.5),
    is_flag=False,
    flag_value=WATCH_EVERY,
    metavar="[SECONDS]",
    help="Look again every few seconds and show the news in place; Ctrl-C ends it.  [default: 5]",
)
@common_options
def status(session: Session, watch: float | None) -> None:
    """Show where the project stands, what comes next, and all rounds.

    The first lines say what happens next and who has to act, how good the model is, whether the last labels helped, and
    when to stop. -v adds the stop rules, labels per person, all columns of the rounds, and what needs a look.
    """
    import sys

    if watch is None or session.as_json:
        _show(session)
    elif sys.stdout.isatty():
        _watch(session, watch)
    else:
        click.echo("This is not a terminal, so --watch shows the status once.", err=True)
        _show(session)


def _show(session: Session) -> None:
    from alloop.cli._tables import print_subjects, print_table, print_text
    from alloop.report.gather import to_json
    from alloop.report.headlines import five_lines, look_at

    report, shown = _gather(session)
    if session.as_json:
        session.show(to_json(report))
        return
    is_long = session.verbosity > 0
    print_subjects(five_lines(report, shown))
    if report.attention and not is_long:
        print_text(look_at(report.attention), style="yellow")
    if report.rounds:
        print_text("")
        print_table(_table(report, shown, is_long=is_long), left=LEFT, is_plain=True)
    for line in ("", *_details(report, shown)) if is_long else ():
        print_text(line)


def _watch(session: Session, seconds: float) -> None:
    """Show the status in place until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                live.update(_screen(session, console), refresh=True)
                time.sleep(seconds)
        except KeyboardInterrupt:
            return


def _screen(session: Session, console: "Console") -> "RenderableType":
    """Return what `_show` prints, with as many of the newest rounds as the terminal has lines for."""
    from rich.console import Group
    from rich.text import Text

    from alloop.cli._tables import fold_subjects, make_grids
    from alloop.report.headlines import five_lines, look_at

    report, shown = _gather(session)
    is_long = session.verbosity > 0
    head: list[RenderableType] = [*fold_subjects(five_lines(report, shown), console.width)]
    if report.attention and not is_long:
        head.append(Text(look_at(report.attention), style="yellow"))
    tail = [Text(line) for line in _details(report, shown)] if is_long else []
    title, columns, lines = _table(report, shown, is_long=is_long)

    def group(n: int) -> Group:
        if not lines:
            return Group(*head, *tail)
        hidden = [Text(f"{len(lines) - n} earlier rounds are not shown.")] if n < len(lines) else []
        newest = (title, columns, lines[len(lines) - n :])
        grids = make_grids(newest, console.width, left=LEFT, is_plain=True)
        return Group(*head, Text(""), *hidden, *grids, *tail)

    fits = (n for n in range(len(lines), 0, -1) if len(console.render_lines(group(n))) < console.height)
    return group(next(fits, min(1, len(lines))))


def _gather(session: Session) -> "tuple[StatusReport, Shown]":
    """Read the workspace, opened anew: the settings may have changed since the last look."""
    from alloop.project import open_project
    from alloop.report.gather import gather_status
    from alloop.report.shown import TASKS

    with open_project(session.workspace) as project:
        return gather_status(project), TASKS[project.config.project.task]


def _table(report: "StatusReport", shown: "Shown", *, is_long: bool) -> "Lines":
    """Return the rounds. The short form fits 80 characters."""
    titles = [metric.title for metric in shown.metrics]
    if not is_long:
        rows = [_short(row, shown) for row in report.rounds]
        return "", ["round", "labels", *titles, "answered"], [[(cell, 0) for cell in row] for row in rows]
    columns = ["round", "state", "labels", "N", *titles, "H", "answered"]
    return "", columns, [[(cell, 0) for cell in _long(row, shown)] for row in report.rounds]


def _short(row: "RoundReport", shown: "Shown") -> list[str]:
    from alloop.report.headlines import interval_of

    return [
        str(row.number),
        "–" if row.n_labels is None else str(row.n_labels),
        *(interval_of(row.metrics.get(metric.name), metric.factor, metric.digits) for metric in shown.metrics),
        f"{row.queries.get('answered', 0)}/{sum(row.queries.values())}" if row.queries else "–",
    ]


def _long(row: "RoundReport", shown: "Shown") -> list[str]:
    number, labels, *metrics, answered = _short(row, shown)
    primary = row.metrics.get(shown.metrics[0].name)
    entropies = f"{_entropy(row.entropy_acquired)} | {_entropy(row.entropy_random)}"
    n = "–" if primary is None else str(primary.n)
    return [number, row.state, labels, n, *metrics, entropies, answered]


def _details(report: "StatusReport", shown: "Shown") -> Iterator[str]:
    """Return what -v adds, one sentence after another."""
    from alloop.report.gather import describe_by_hand, describe_measured

    pool = report.pool
    if report.rounds:
        yield f"{shown.explained.format(measured=describe_measured(report.findings))} {H}"
    yield f"{pool.groups} of the {pool.images} images are different; {pool.open} are being asked about."
    yield from _findings(report, shown)
    yield from _people(report)
    if report.auto is not None:
        yield report.auto.says
    yield from describe_by_hand(report)
    yield from _choice(report)
    measured = [row for row in report.rounds if row.model is not None]
    if measured:
        yield _calibration(measured[-1])
    yield from report.attention
    if report.rounds and report.rounds[-1].closed_because:
        yield f"Round {report.rounds[-1].number} closed: {report.rounds[-1].closed_because}."


def _findings(report: "StatusReport", shown: "Shown") -> Iterator[str]:
    """Return sentences about the results of the rounds and the stop rules."""
    from alloop.report.gather import describe_findings, describe_people

    found = report.findings
    yield from describe_findings(found)
    if report.rounds:
        yield "Stop rules (`alloop run` stops when one with * holds):"
        yield from (f"{'*' if rule.stops else ' '} {rule.standing}: {rule.because}" for rule in found.rules)
    if any(shown.metrics[0].name in row.metrics for row in report.rounds):
        yield describe_people(found)


def _people(report: "StatusReport") -> Iterator[str]:
    from alloop.names import count

    for name, counts in report.annotators.items():
        other = ", ".join(f"{n} {kind}" for kind, n in counts.items() if kind != "label")
        yield f"{name}: {count(counts.get('label', 0), 'label')}" + (f", {other}" if other else "")
    if report.class_counts:
        yield "Labels to train on: " + ", ".join(f"{name} {n}" for name, n in report.class_counts.items())


def _choice(report: "StatusReport") -> Iterator[str]:
    """Name the strategy that chose the newest batch, with its notes."""
    chosen = [row for row in report.rounds if row.strategy is not None]
    if chosen:
        yield " ".join((f"Round {chosen[-1].number} was chosen by {chosen[-1].strategy}.", *chosen[-1].notes))


def _calibration(row: "RoundReport") -> str:
    """Describe the calibrator, its number of labels, and the NLL before and after on images it was not fitted to."""
    from alloop.report.headlines import interval_of

    words = f"Calibrated by {row.calibration} on {row.n_calibration} holdout labels."
    if "nll_uncalibrated" in row.metrics:
        before, after = (interval_of(row.metrics.get(name), 1, 3) for name in ("nll_uncalibrated", "nll"))
        words += f" NLL {before} before, {after} after."
    return f"{words} {row.calibration_note}".rstrip()


def _entropy(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
