"""`alloop labels`: import and export of labels."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from alloop.cli._options import OutFile, Session, common_options
from alloop.composition import EXPORTS
from alloop.names import count

if TYPE_CHECKING:
    from alloop.export.rows import Include


@click.group()
def labels() -> None:
    """Import known labels; export all labels."""


@labels.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@common_options
def import_(session: Session, file: Path) -> None:
    """Import a CSV with the columns `label` and `file` or `sha256`.

    A file is named by its full path, by its path relative to the CSV, or by its bare name if only one image has that
    name. Either all lines are imported or none. Importing a file again changes nothing.
    """
    from alloop.loop.intake.labels import import_labels
    from alloop.loop.workbench import open_workbench

    with open_workbench(session.tools()) as bench:
        recorded, known = import_labels(bench, file)
    session.show({"recorded": recorded, "known": known}, f"{recorded} labels recorded; {known} were already known.")


@labels.command()
@common_options
def adopt(session: Session) -> None:
    """Record answers to tasks that the database does not know.

    Such tasks exist after the database was restored from a backup, or after another copy of the workspace pushed to the
    same project. `alloop status` counts them. Each answer is recorded for the image that its task shows, found by
    SHA-256. Run the command again to record answers that come later.
    """
    from alloop.loop.asking.people import adopt as adopt_answers
    from alloop.loop.workbench import open_workbench

    with open_workbench(session.tools()) as bench:
        recorded, left_out = adopt_answers(bench)
    words = f"{recorded} answers recorded."
    if left_out:
        words += (
            f" {left_out} tasks were left out, because their images are not in the pool. Add the images with `alloop "
            "pool add`, then run `alloop labels adopt` again."
        )
    session.show({"recorded": recorded, "left_out": left_out}, words)


@labels.command()
@click.argument("target", type=OutFile(dir_okay=True))
@click.option(
    "--format",
    "form",
    type=click.Choice(list(EXPORTS)),
    help="Format.  [default: by TARGET's ending; without an ending: a folder per class, or CSV into a pipe]",
)
@click.option("--copy", is_flag=True, help="Copy images instead of linking to them, where a format has images.")
@click.option(
    "--include",
    type=click.Choice(["human", "auto", "both"]),
    default="human",
    show_default=True,
    help="Labels by people, labels by `alloop autolabel`, or both; the column provenance says which.",
)
@common_options
def export(session: Session, target: Path, form: str | None, copy: bool, include: "Include") -> None:
    """Write all labels for other programs, as a table or with images.

    TARGET is a file (csv, jsonl, parquet; - is standard output) or a new folder with the images: folders (one per
    class), hf-imagefolder (Hugging Face datasets), coco (COCO, without boxes), fiftyone
    (FiftyOneImageClassificationDataset).
    """
    from alloop.export.formats import export_labels
    from alloop.files import is_stream

    bare = "csv" if is_stream(target) else "folders"
    endings = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", "": bare}
    chosen = form or endings.get(target.suffix.lower())
    if chosen is None:
        raise click.UsageError(f"The ending {target.suffix} does not name a format; add --format.")
    n = export_labels(session.project(), target, chosen, copy=copy, include=include)
    session.show({"labels": n, "target": str(target)}, f"{count(n, 'label')} written to {target}.", written=target)
