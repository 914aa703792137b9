"""`alloop labelstudio`: a local server for people without a Label Studio."""

from pathlib import Path

import click

from alloop.cli._options import Session, common_options


@click.group()
def labelstudio() -> None:
    """Start and stop a local Label Studio."""


@labelstudio.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the server.  [default: any free port]")
@common_options
def up(session: Session, port: int | None) -> None:
    """Start a local Label Studio, and install it the first time.

    Installing takes about 1 GB and a minute or two. The server has its own Python environment, keeps its data in the
    workspace, serves the pool's images, and can be reached from this machine only. Address, user and password are in
    label-studio/credentials.json, which only you can read. alloop reads them there.
    """
    from alloop.labeling import local_server
    from alloop.loop.intake.ingest import image_folders

    project = session.project()
    status = local_server.up(project.folder, image_folders(project), port, session.progress())
    path = local_server.credentials_path(project.folder)
    session.show(_data(status), f"Label Studio runs at {status.url}\nUser and password for the browser: {path}")


@labelstudio.command()
@common_options
def down(session: Session) -> None:
    """Stop the local Label Studio. Its data are kept."""
    from alloop.labeling import local_server

    was_running = local_server.down(session.project(check_schema=False).folder, session.progress())
    words = "Label Studio is stopped." if was_running else "The Label Studio of this workspace was not running."
    session.show({"was_running": was_running}, words)


@labelstudio.command()
@common_options
def status(session: Session) -> None:
    """Show whether the local Label Studio runs and answers."""
    from alloop.labeling import local_server

    found = local_server.status(session.project(check_schema=False).folder)
    answers = "and answers" if found.healthy else "but does not answer"
    words = f"Label Studio runs at {found.url} {answers}." if found.running else "Label Studio is not running."
    session.show(_data(found), words)


def _data(status: object) -> dict[str, object]:
    import dataclasses

    plain = dataclasses.asdict(status)  # type: ignore[call-overload]
    return {key: str(value) if isinstance(value, Path) else value for key, value in plain.items()}
