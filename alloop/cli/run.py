"""`alloop run`: the only command that a project needs once it is set up."""

import click

from alloop.cli._options import Session, common_options

EXIT_WAITING = 3


@click.command()
@click.option("--wait", is_flag=True, help="Keep polling while people work; end when a stop rule holds.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help="End after this many rounds are closed.  [default: 1; with --wait: no limit]",
)
@click.option("--device", help="auto, cpu, cuda, cuda:1 or mps; overrides [model] device.")
@click.option("--accept-change", is_flag=True, help="Continue although [model] changed since the last round.")
@click.option("--fail-if-waiting", is_flag=True, help="Exit with code 3 if annotators have to answer first.")
@common_options
def run(
    session: Session, wait: bool, rounds: int | None, device: str | None, accept_change: bool, fail_if_waiting: bool
) -> None:
    """Advance the current round as far as it can go without a person.

    Pulls answers, closes the round if enough have come, then trains, scores, selects and pushes the next batch. Safe to
    call at any time, also twice at once or after a crash: nothing is done twice.

    Exit codes: 0 done or waiting, 1 error, 2 wrong settings, 3 waiting (with --fail-if-waiting), 75 try again later.
    """
    import dataclasses

    tools = session.tools()  # refuses outside a workspace, before the rest loads
    from alloop.loop.rounds.runner import RunOptions, Stage
    from alloop.loop.rounds.runner import run as advance
    from alloop.report.gather import find_label_place
    from alloop.report.headlines import where_to_label

    limit = rounds if rounds is not None or wait else 1
    options = RunOptions(rounds=limit, wait=wait, device=device, accept_change=accept_change)
    result = advance(tools, options)
    said = result.describe(where_to_label(find_label_place(tools.project)))
    session.show(dataclasses.asdict(result), "\n".join((said, *result.attention)))
    if fail_if_waiting and result.stage is Stage.WAITING:
        click.get_current_context().exit(EXIT_WAITING)
