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
@common_options
def report(session: Session, out: Path | None, is_shown: bool) -> None:
    """Write the project's results as one HTML page.

    The page shows the learning curve, the calibration, labels per person, all rounds and the stop rules. It needs no
    other file and no network.
    """
    import os

    from alloop.errors import WorkspaceError
    from alloop.report.page import write_report

    project = session.project()
    if out is None and not os.access(project.folder, os.W_OK):
        raise WorkspaceError(
            f"You have no permission to write in {project.folder}, so the report cannot go there.",
            "Name a file elsewhere: `alloop report --out ~/report.html`.",
        )
    path = write_report(project, out or project.folder / "report.html")
    session.show({"report": str(path)}, f"Report in {path}.", written=path)
    if is_shown:
        click.launch(path.absolute().as_uri())  # as a URL, since browsers give ?, # and % in a path another meaning
