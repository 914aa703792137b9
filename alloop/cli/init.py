"""`alloop init`: a new workspace."""

from pathlib import Path

import click

from alloop.cli._options import Session, common_options
from alloop.composition import DEFAULT_BACKEND

KEY = "export LABEL_STUDIO_API_KEY=...      from the account page of your Label Studio; or: alloop labelstudio up"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--classes", required=True, help="Class names, separated by commas: cat,dog")
@click.option("--images", multiple=True, help="Folder or glob of images; can be given several times.")
@click.option(
    "--label-studio", "url", default="http://localhost:8080", show_default=True, help="Address of the server."
)
@click.option(
    "--backend",
    default=DEFAULT_BACKEND,
    show_default=True,
    metavar="NAME",
    help="Where people label: label-studio, csv (sheets to fill in), or one of another package.",
)
@click.option("--name", help="Name of the project in Label Studio.  [default: the folder's name]")
@common_options
def init(
    session: Session, folder: Path, classes: str, images: tuple[str, ...], url: str, backend: str, name: str | None
) -> None:
    """Create a workspace: settings and database."""
    from alloop.loop.workspace import create_workspace, new_config

    names = tuple(part.strip() for part in classes.split(",") if part.strip())
    folder = session.workspace / folder
    path = create_workspace(folder, new_config(folder, name, names, images, url, backend))
    steps = [
        f"cd {folder}",
        "edit alloop.toml                     settings that are not in it have working defaults",
        f"alloop pool add{'' if images else ' PATH'}",
        *([KEY] if backend == "label-studio" else []),
        "alloop run                           asks about the first images; run it again when they are labeled",
    ]
    made = f"Made {folder} for {len(names)} classes: {', '.join(names)}."
    session.show(
        {"workspace": str(folder.absolute()), "config": str(path), "classes": names},
        "\n  ".join((f"{made}\n\nNext:", *steps)),
    )
