"""Images of the pool that people name on the command line."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from alloop.project import Project


def image_arguments(function: Callable[..., None]) -> Callable[..., None]:
    """Add arguments for images; the command gets `find`, which returns their ids in an open workspace.

    Without any name the command is refused.
    """

    @click.argument("files", nargs=-1)
    @click.option(
        "--sha256", "hashes", multiple=True, metavar="HASH", help="Beginning of an image's hash; can be repeated."
    )
    @functools.wraps(function)
    def command(*arguments: Any, files: tuple[str, ...], hashes: tuple[str, ...], **options: Any) -> None:
        if not files and not hashes:
            raise click.UsageError("Name images: files, or --sha256.")
        function(*arguments, find=functools.partial(_find, files, hashes), **options)

    return command


def _find(files: tuple[str, ...], hashes: tuple[str, ...], project: "Project") -> list[int]:
    from alloop.loop.intake.named_images import find_images
    from alloop.store.session import reading

    with reading(project.database) as session:
        return find_images(session, files, hashes)
