"""`alloop ask`: questions about images that a person names."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from alloop.cli._images import image_arguments
from alloop.cli._options import Session, common_options

if TYPE_CHECKING:
    from alloop.project import Project


@click.command()
@image_arguments
@click.option("--now", is_flag=True, help="Send the questions at once, with everything else that waits to be sent.")
@common_options
def ask(session: Session, find: "Callable[[Project], list[int]]", now: bool) -> None:
    """Ask people about images that you name.

    FILES are paths or file names of the pool. The questions are sent with the next batch, or at once with --now. A
    label that was asked for by hand is trained on like any other. But it is not a random draw: it never measures the
    model, and it counts neither for nor against the strategy.
    """
    import dataclasses

    from alloop.errors import LabelError
    from alloop.loop.asking import people
    from alloop.loop.asking.by_hand import ask_by_hand
    from alloop.loop.workbench import open_workbench
    from alloop.names import count

    tools = session.tools()
    with open_workbench(tools) as bench:
        images = find(tools.project)
        connection = people.connect_people(bench) if now else None  # before anything is recorded: it may be down
        found = ask_by_hand(bench, images)
        if not found.asked:
            raise LabelError(f"No image was asked about. {' '.join(found.describe())}")
        if connection is not None:
            people.push(bench, found.round_number, connection)
    when = "now" if now else "with the next `alloop run`"
    sent = f"People are asked about {count(len(found.asked), 'image')} {when} (round {found.round_number})."
    session.show(dataclasses.asdict(found), "\n".join([sent, *found.describe()]))
