"""`alloop round`: list rounds, show one, end one early."""

import click

from alloop.cli._options import Session, common_options


@click.group("round")
def round_() -> None:
    """List rounds, show one, close one."""


@round_.command("list")
@common_options
def list_(session: Session) -> None:
    """List the rounds with their state and number of answers."""
    import dataclasses

    from alloop.report.gather import gather_status

    rounds = gather_status(session.project()).rounds
    lines = [
        f"{row.number}\t{row.state}\t{row.queries.get('answered', 0)} of "
        f"{sum(row.queries.values())} answered\t{row.closed_because or ''}"
        for row in rounds
    ]
    session.show([dataclasses.asdict(row) for row in rounds], "\n".join(lines) or "No rounds yet.")


@round_.command()
@click.argument("number", type=int)
@common_options
def show(session: Session, number: int) -> None:
    """Show a round: its model and all its queries.

    One line per query: rank, reason, the strategy's score, probability of selection (if drawn), status, image hash, and
    "suspect" for a suspect image. --json adds the settings of the round.
    """
    import dataclasses

    from alloop.store.queries import list_queries
    from alloop.store.rounds import find_model, find_round
    from alloop.store.session import reading

    with reading(session.project().database) as rows:
        found = find_round(rows, number)
        model = find_model(rows, found.id)
        queries = list_queries(rows, found.id)
    lines = [f"Round {number}: {found.state}" + (f", model {model.name}" if model else ", no model")]
    lines += [
        f"{query.rank}\t{query.reason}\t{'' if query.score is None else f'{query.score:.4f}'}\t"
        f"{'' if query.probability is None else f'p={query.probability:.4g}'}\t{query.status}\t{query.sha256[:12]}"
        + ("\tsuspect" if query.suspect else "")
        for query in queries
    ]
    data = {
        "round": dataclasses.asdict(found),
        "model": dataclasses.asdict(model) if model else None,
        "queries": [dataclasses.asdict(query) for query in queries],
    }
    session.show(data, "\n".join(lines))


@round_.command()
@click.argument("number", type=int, required=False)
@click.option("--withdraw", is_flag=True, help="Also withdraw its tasks that nobody has started.")
@common_options
def close(session: Session, number: int | None, withdraw: bool) -> None:
    """End a round without waiting for more answers.

    Without NUMBER, ends the current round. Its open tasks stay with the annotators, and later answers still count.
    --withdraw removes open tasks that nobody has started.
    """
    from alloop.errors import AlloopError
    from alloop.loop.asking import people
    from alloop.loop.rounds import steps
    from alloop.loop.workbench import open_workbench
    from alloop.records import Ending, RoundState
    from alloop.store.rounds import find_last_round, find_round
    from alloop.store.session import reading

    tools = session.tools()
    project = tools.project
    with open_workbench(tools) as bench:
        with reading(project.database) as rows:
            last = find_last_round(rows)
        if last is None:
            raise AlloopError("There is no round yet.", "Start the first one with `alloop run`.")
        chosen = last.number if number is None else number
        taken_back = people.withdraw(bench, chosen) if withdraw else 0
        with reading(project.database) as rows:
            is_closed = find_round(rows, chosen).state is RoundState.CLOSED
        # Tasks that a closed round left open can be withdrawn, too.
        if not (is_closed and withdraw):
            steps.close(bench, chosen, Ending.BY_HAND, "closed by hand")
    words = f"Round {chosen} is closed." + (f" {taken_back} tasks were withdrawn." if withdraw else "")
    session.show({"round": chosen, "withdrawn": taken_back}, words)
