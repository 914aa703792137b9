"""`alloop explain` and `alloop replay`: reasons for a question, and repetition of a choice."""

import os
import tempfile
from pathlib import Path

import click

from alloop.cli._options import Session, common_options


@click.command()
@click.argument("image")
@click.option("--open", "is_open", is_flag=True, help="Write a page with pictures to runs/explain and open it.")
@click.option("--device", help="auto, cpu, cuda, cuda:1 or mps; overrides [model] device.")
@common_options
def explain(session: Session, image: str, is_open: bool, device: str | None) -> None:
    """Explain why an image was asked about, and show its state.

    IMAGE is a path, a file name or the beginning of a hash. The command shows the rounds that asked about the image,
    the model's prediction, its rank by each score, and the nearest labeled images.
    """
    import dataclasses

    from alloop.loop.choosing.explain import explain as gather
    from alloop.report.explain import describe, write_explanation
    from alloop.report.shown import TASKS

    tools = session.tools()
    found, shown = gather(tools, image, device), TASKS[tools.project.config.project.task]
    data, lines = dataclasses.asdict(found), describe(found, shown)
    if is_open:
        # A user who may not write in the workspace gets the page in a temporary folder.
        place = tools.project.folder / "runs" if os.access(tools.project.folder, os.W_OK) else Path(tempfile.mkdtemp())
        page = place / "explain" / f"{found.sha256[:12]}.html"
        write_explanation(found, page, shown)
        data["page"] = str(page)
        lines.append(f"Page: {page}")
        click.launch(page.as_uri())
    session.show(data, "\n".join(lines))


@click.command()
@click.argument("number", metavar="ROUND", type=int)
@click.option("--device", help="auto, cpu, cuda, cuda:1 or mps; overrides [model] device.")
@common_options
def replay(session: Session, number: int, device: str | None) -> None:
    """Choose a round's images again from stored data.

    Uses the round's model, scores, settings and seed, and the labels, questions and pool of that time. Nothing is
    recorded. Exit codes: 0: the same images were chosen; 1: other images were chosen, and the reasons are listed.
    """
    import dataclasses

    from alloop.loop.choosing.replay import replay as choose_again

    found = choose_again(session.tools(), number, device)
    words = (
        f"Round {number}: {found.strategy} chose the same {found.n} images again."
        if found.is_equal
        else f"Round {number}: only {found.n_same} of {found.n} images were chosen again."
    )
    session.show(dataclasses.asdict(found), "\n".join([words, *found.changes]))
    if not found.is_equal:
        click.get_current_context().exit(1)
