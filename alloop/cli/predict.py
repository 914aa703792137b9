"""`alloop predict`: predict images of the pool and others."""

import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alloop.cli._options import OutFile, Session, common_options
from alloop.cli.steps import device_option
from alloop.names import count

if TYPE_CHECKING:
    from alloop.loop.using.model import OpenedModel
    from alloop.loop.using.predicted import Images, Tally
    from alloop.loop.using.row_files import RowWriter, SortedFolders

STDIN = "-"
ENDINGS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATHS|GLOBS|-]...")
@click.option("--pool", is_flag=True, help="Predict all images of the pool.")
@click.option(
    "-o", "--out", type=OutFile(), help="File: .csv, .parquet or .jsonl. It is replaced as a whole.  [default: stdout]"
)
@click.option("--round", "number", type=click.IntRange(min=0), help="Use the model of this round.  [default: newest]")
@click.option("--top", type=click.IntRange(min=1), help="Write the K most probable classes only, the best one first.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    help="New folder: puts the images into a folder for each predicted class.",
)
@click.option("--link/--copy", "is_link", default=True, help="With --into: link to the images, or copy them.  [link]")
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    help="With --into: less probable images go to the folder unsure.",
)
@device_option
@common_options
def predict(
    session: Session,
    paths: tuple[str, ...],
    pool: bool,
    out: Path | None,
    number: int | None,
    top: int | None,
    into: Path | None,
    is_link: bool,
    min_probability: float | None,
    device: str | None,
) -> None:
    """Predict images with the newest model, or with that of a round.

    PATHS are files, folders and globs; - reads file names from standard input, one per line. Each image gets a row:
    the predicted class, calibrated probabilities, entropy in nats, whether it looks unlike the pool (suspect), and
    people's label if it has one. An image that cannot be read gets a row with the reason, and the exit code stays 0.
    The workspace is not changed.
    """
    from alloop.loop.using.model import open_model
    from alloop.loop.using.predicted import pool_images, predict_images

    _check_usage(paths, pool, into, min_probability)
    form = _form(out)
    project = session.project()
    images = pool_images(project) if pool else _named_images(paths)
    model = open_model(project, number, device)
    if session.verbosity >= 0:
        for note in model.notes:
            click.echo(note, err=True)
    with contextlib.ExitStack() as stack:
        folders = None
        if into is not None:
            folders = stack.enter_context(_open_folders(model, into, is_link, min_probability))
        rows = stack.enter_context(_open_rows(session, model, out, form, top, into))
        writers = [writer for writer in (folders, rows) if writer is not None]
        tally = predict_images(project, model, images, writers, top=top, progress=session.progress())
    unsure = 0 if folders is None else folders.unsure
    if session.as_json and (out is not None or into is not None):
        counts: dict[str, object] = {"images": tally.images, "unreadable": tally.unreadable}
        counts |= {"suspects": tally.suspects, "predicted": dict(tally.predicted), "unsure": unsure}
        counts |= {"out": out, "into": into}
        session.show({**_head(model), **counts}, written=out)
    elif session.verbosity >= 0:
        click.echo(_say(tally, images, model.record.name, out, into, unsure), err=True)


def _check_usage(paths: tuple[str, ...], pool: bool, into: Path | None, min_probability: float | None) -> None:
    if pool == bool(paths):
        raise click.UsageError("Name images, or give --pool for all images of the pool; not both.")
    if STDIN in paths and len(paths) > 1:
        raise click.UsageError("- reads all names from standard input; name no other images.")
    if into is None and min_probability is not None:
        raise click.UsageError("--min-probability needs --into.")


def _open_folders(
    model: "OpenedModel", into: Path, is_link: bool, min_probability: float | None
) -> "AbstractContextManager[SortedFolders]":
    from alloop.loop.using.row_files import open_folders

    return open_folders(into, model.record.classes, copy=not is_link, min_probability=min_probability or 0.0)


def _open_rows(
    session: Session, model: "OpenedModel", out: Path | None, form: str, top: int | None, into: Path | None
) -> "AbstractContextManager[RowWriter | None]":
    """Open the place of the rows: a file, or standard output if nothing else was asked for."""
    from alloop.files import STDOUT
    from alloop.loop.using.predicted import columns_of
    from alloop.loop.using.row_files import TerminalLines, open_rows

    columns = columns_of(model, top)
    if out is not None:
        return open_rows(out, form, columns)
    if into is not None:
        return contextlib.nullcontext()
    if session.as_json:
        return open_rows(STDOUT, "json", columns, _head(model))
    if sys.stdout.isatty():
        return contextlib.nullcontext(TerminalLines(sys.stdout))
    return open_rows(STDOUT, "csv", columns)


def _head(model: "OpenedModel") -> dict[str, object]:
    return {
        "model": model.record.name,
        "round": model.number,
        "classes": list(model.record.classes),
        "notes": list(model.notes),
    }


def _form(out: Path | None) -> str:
    """Return the format that a file's ending names; CSV for standard output and other streams."""
    from alloop.files import is_stream

    if out is None or is_stream(out):
        return "csv"
    form = ENDINGS.get(out.suffix.lower())
    if form is None:
        raise click.UsageError(f"--out {out}: the ending says the format; it must be .csv, .parquet or .jsonl.")
    return form


def _named_images(paths: tuple[str, ...]) -> "Images":
    """Return the images that paths lead to, or those that standard input names.

    Raises:
        PoolError: A path leads to nothing, or there is no image.
    """
    from alloop.errors import PoolError
    from alloop.loop.using.predicted import Images
    from alloop.pool.sources import Skipped, expand

    if paths == (STDIN,):
        return Images(_read_names())
    skipped = Skipped()
    n = sum(1 for _ in expand(paths, skipped))  # walked twice, so that their names need no memory
    if not n:
        raise PoolError(f"No images found in {', '.join(paths)}.", "Name a folder that has images in it.")
    return Images(expand(paths), n, left_out=skipped.not_images.total())


def _read_names() -> Iterator[str]:
    """Yield the locations that standard input names. What cannot be read there gets a row with the reason."""
    from alloop.pool.outside import location_of

    for line in sys.stdin.buffer:
        name = line.rstrip(b"\r\n")
        if name:
            yield location_of(name.decode(errors="surrogateescape"))


def _say(tally: "Tally", images: "Images", model: str, out: Path | None, into: Path | None, unsure: int) -> str:
    lines = [f"{count(tally.images, 'image')} predicted by {model}."]
    if tally.predicted:
        lines.append("  " + ", ".join(f"{n} {name}" for name, n in tally.predicted.most_common(12)))
    if tally.suspects:
        lines.append(f"{tally.suspects} of them look unlike the pool (suspect).")
    if into is not None:
        lines.append(f"They are in {into}" + (f", {unsure} of them in unsure." if unsure else "."))
    if out is not None:
        lines.append(f"Rows: {out}")
    if tally.unreadable:
        lines.append(f"{count(tally.unreadable, 'image')} could not be read, for example {tally.example}")
    if images.left_out:
        were, why = "were", "their endings say that they are not images"
        if images.left_out == 1:
            were, why = "was", "its ending says that it is not an image"
        lines.append(f"{count(images.left_out, 'file')} in folders {were} left out: {why}.")
    return "\n".join(lines)
