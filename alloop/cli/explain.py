"""`alloop explain` and `alloop replay`: why an image was asked about, and whether a choice can be made again."""

import os
import tempfile
from pathlib import Path

import click

from alloop.cli._options import Session, common_options


@click.command()
@click.argument("image")
@click.option("--open", "is_open", is_flag=True, help="Write a page with pictures under runs/explain, and show it.")
@click.option("--device", help="auto, cpu, cuda, cuda:1 or mps; overrides [model] device.")
@common_options
def explain(session: Session, image: str, is_open: bool, device: str | None) -> None:
    """Say why an image was asked about, or how it stands now.

    IMAGE is the beginning of its hash, a path or a file name. Shown are the rounds that asked about it, the model's
    prediction, its rank under each score, and the labeled images that are nearest to it.
    """
    import dataclasses

    from alloop.loop.choosing.explain import explain as gather
    from alloop.report.explain import describe, write_explanation

    project = session.project()
    found = gather(project, image, device, session.progress())
    data, lines = dataclasses.asdict(found), describe(found)
    if is_open:
        # A user who may not write in the workspace gets the page in a temporary folder.
        place = project.folder / "runs" if os.access(project.folder, os.W_OK) else Path(tempfile.mkdtemp())
        page = place / "explain" / f"{found.sha256[:12]}.html"
        write_explanation(found, page)
        data["page"] = str(page)
        lines.append(f"Page: {page}")
        click.launch(page.as_uri())
    session.show(data, "\n".join(lines))


@click.command()
@click.argument("number", metavar="ROUND", type=int)
@click.option("--device", help="auto, cpu, cuda, cuda:1 or mps; overrides [model] device.")
@common_options
def replay(session: Session, number: int, device: str | None) -> None:
    """Choose a round's images again from what is stored.

    Takes the round's model, scores, settings and seed, and labels, queries and pool as they were then. Nothing is
    recorded. Exit codes: 0 the same images came out, bit for bit; 1 they did not, with what has changed.
    """
    import dataclasses

    from alloop.loop.choosing.replay import replay as choose_again

    found = choose_again(session.project(), number, device, session.progress())
    words = (
        f"Round {number}: {found.strategy} chose the same {found.n} images again."
        if found.is_equal
        else f"Round {number}: {found.n_same} of {found.n} images were chosen again."
    )
    session.show(dataclasses.asdict(found), "\n".join([words, *found.changes]))
    if not found.is_equal:
        click.get_current_context().exit(1)
