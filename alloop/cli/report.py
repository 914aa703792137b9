"""`alloop report`: the project as one page to look at or to send."""

from pathlib import Path

import click

from alloop.cli._options import OutFile, Session, common_options


@click.command()
@click.option(
    "-o",
    "--out",
    type=OutFile(),
    help="File of the page; - is standard output.  [default: report.html in the workspace]",
)
@click.option("--open", "is_shown", is_flag=True, help="Open it in the browser.")
@click.option("--public", "is_public", is_flag=True, help="Leave out names of files and people, folders and addresses.")
@common_options
def report(session: Session, out: Path | None, is_shown: bool, is_public: bool) -> None:
    """Write the project's results as one HTML page.

    The page shows what `alloop serve` shows: the learning curve, mistakes, the calibration, small pictures, people,
    cost, stop rules and settings. It needs no other file and no network, and can be printed.
    """
    import os

    from alloop.errors import WorkspaceError
    from alloop.loop.choosing.uncertain import find_most_uncertain
    from alloop.report.page import N_UNCERTAIN, write_report

    project = session.project()
    if out is None and not os.access(project.folder, os.W_OK):
        raise WorkspaceError(
            f"You have no permission to write in {project.folder}, so the report cannot go there.",
            "Name a file elsewhere: `alloop report --out ~/report.html`.",
        )
    uncertain = find_most_uncertain(project, N_UNCERTAIN)
    path = write_report(project, out or project.folder / "report.html", uncertain, is_public=is_public)
    session.show({"report": str(path)}, f"Report in {path}.", written=path)
    if is_shown:
        click.launch(path.absolute().as_uri())  # as a URL, since browsers give ?, # and % in a path another meaning
