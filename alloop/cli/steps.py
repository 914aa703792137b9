"""Every step of a round as a command, so that a scheduler can run expensive steps on another machine."""

from typing import TYPE_CHECKING

import click

from alloop.cli._options import Session, common_options
from alloop.names import count

if TYPE_CHECKING:
    from alloop.project import Project

TOO_FEW = "too few labels to train a model; two classes need at least one label each"
device_option = click.option("--device", help="auto, cpu, cuda, cuda:1 or mps; overrides [model] device.")


@click.command()
@device_option
@common_options
def train(session: Session, device: str | None) -> None:
    """Train on all labels, calibrate and measure on the holdout."""
    from alloop.loop.rounds import steps
    from alloop.loop.workbench import open_workbench
    from alloop.records import RoundState
    from alloop.report.gather import describe_calibration
    from alloop.store.rounds import find_last_round, find_model
    from alloop.store.session import reading

    tools = session.tools()
    project = tools.project
    with open_workbench(tools) as bench:
        with reading(project.database) as rows:
            last = find_last_round(rows)
        if last is None or last.state is RoundState.CLOSED:
            last = steps.start_round(bench)
        steps.train(bench, last.number, device)
    with reading(project.database) as rows:
        model = find_model(rows, last.id)
    if model is None:
        session.show({"round": last.number, "model": None}, f"Round {last.number}: {TOO_FEW}.")
        return
    calibration = model.calibration
    session.show(
        {
            "round": last.number,
            "model": model.name,
            "labels": model.n_labels,
            "temperature": calibration.temperature,
            "calibration": calibration.method,
        },
        f"Round {last.number}: trained {model.name} on {model.n_labels} labels, calibrated by "
        f"{describe_calibration(calibration)} on {calibration.n} holdout labels.",
    )


@click.command()
@click.option("--strategy", help="Also store what this strategy needs.  [default: [acquisition] strategy]")
@device_option
@common_options
def score(session: Session, device: str | None, strategy: str | None) -> None:
    """Score the unlabeled images with the round's model."""
    from alloop.loop.rounds import steps
    from alloop.loop.workbench import open_workbench

    tools = session.tools()
    project = tools.project
    with open_workbench(tools) as bench:
        number = _round_number(project)
        steps.score(bench, number, device, strategy=strategy)
    path = project.paths.scores(number)
    written = str(path) if path.exists() else None
    words = f"Round {number}: scores in {path}." if written else f"Round {number} has no model, so nothing was scored."
    session.show({"round": number, "scores": written}, words)


@click.command()
@click.option(
    "-n", "--batch-size", type=click.IntRange(min=1), help="Images to ask about.  [default: [loop] batch_size]"
)
@click.option("--strategy", help="Strategy for this batch.  [default: [acquisition] strategy]")
@click.option(
    "--max-ram",
    type=click.FloatRange(min=0, min_open=True),
    help="Memory limit in GiB.  [default: [acquisition] max_ram]",
)
@device_option
@common_options
def select(
    session: Session, batch_size: int | None, strategy: str | None, max_ram: float | None, device: str | None
) -> None:
    """Choose the images to ask about next.

    `alloop strategies` lists the strategies. Decisions that a strategy takes by itself are recorded and shown.
    """
    from alloop.loop.rounds import steps
    from alloop.loop.workbench import open_workbench
    from alloop.store.selections import list_selections
    from alloop.store.session import reading

    tools = session.tools()
    project = tools.project
    with open_workbench(tools) as bench:
        number = _round_number(project)
        n = steps.select(bench, number, batch_size, strategy=strategy, max_ram=max_ram, device=device)
    with reading(project.database) as rows:
        chosen = list_selections(rows)[number]
    session.show(
        {"round": number, "queries": n, "strategy": chosen.strategy, "notes": chosen.notes},
        f"Round {number}: {count(n, 'image')} chosen by {chosen.strategy}. `alloop push` sends them.",
    )


@click.command()
@click.option(
    "--new-project", is_flag=True, help="Leave the old labeling project and push the open questions to a new one."
)
@click.option("--take-over", is_flag=True, help="Continue here although another copy of the workspace has pushed.")
@common_options
def push(session: Session, new_project: bool, take_over: bool) -> None:
    """Send the chosen images to the annotators."""
    from alloop.loop.asking import people
    from alloop.loop.workbench import open_workbench

    tools = session.tools()
    project = tools.project
    with open_workbench(tools) as bench:
        number = _open_round(project) if new_project or take_over else _round_number(project)
        connection = people.connect_people(bench, new_project=new_project, take_over=take_over)
        if number is None:
            session.show({"round": None, "tasks": 0}, "No round is under way. The next round will push its questions.")
            return
        n = people.push(bench, number, connection)
    session.show({"round": number, "tasks": n}, f"Round {number}: {count(n, 'new task')}.")


@click.command()
@common_options
def pull(session: Session) -> None:
    """Fetch answers, edits and deletions."""
    import dataclasses

    from alloop.loop.asking import people
    from alloop.loop.asking.strangers import describe_strangers
    from alloop.loop.rounds.attention import describe_lost, describe_unknown
    from alloop.loop.workbench import open_workbench

    tools = session.tools()
    project = tools.project
    with open_workbench(tools) as bench:
        found = people.pull(bench)
    lines = [f"{count(found.new, 'new answer')}, {found.edited} edited, {found.deleted} deleted."]
    lines += describe_unknown(found.unknown.items(), project.config.project) + describe_lost(found.lost)
    lines += describe_strangers(0, found.foreign)  # a warning about orphaned tasks was logged before
    session.show({**dataclasses.asdict(found), "unknown": dict(found.unknown)}, "\n".join(lines))


@click.command()
@device_option
@common_options
def evaluate(session: Session, device: str | None) -> None:
    """Measure the newest model on the current holdout labels."""
    import dataclasses

    from alloop.loop.measuring.measure import evaluate as measure_again
    from alloop.loop.workbench import open_workbench

    with open_workbench(session.tools()) as bench:
        name, metrics = measure_again(bench, device)
    lines = [
        f"{key:9} {value.value:.4f} [{value.low:.4f}, {value.high:.4f}] ({value.method}, N = {value.n})"
        for key, value in metrics.items()
    ]
    listed = {key: dataclasses.asdict(value) for key, value in metrics.items()}
    session.show({"model": name, "metrics": listed}, f"{name} on the holdout:\n" + "\n".join(lines))


def _round_number(project: "Project") -> int:
    """Number of the round that is under way.

    Raises:
        AlloopError: No round is under way.
    """
    from alloop.errors import AlloopError

    number = _open_round(project)
    if number is None:
        raise AlloopError(
            "No round is under way.", "Start the next round with `alloop train`, or let `alloop run` take all steps."
        )
    return number


def _open_round(project: "Project") -> int | None:
    """Number of the round that is under way; None if the last round is closed or no round was started."""
    from alloop.records import RoundState
    from alloop.store.rounds import find_last_round
    from alloop.store.session import reading

    with reading(project.database) as rows:
        last = find_last_round(rows)
    return None if last is None or last.state is RoundState.CLOSED else last.number
