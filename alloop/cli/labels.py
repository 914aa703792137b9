"""`alloop labels`: import and export of labels."""

from pathlib import Path

import click

from alloop.cli._options import OutFile, Session, common_options


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
    type=click.Choice(["csv", "jsonl", "folders"]),
    help="Format.  [default: by TARGET's ending; without an ending: a folder per class, or CSV into a pipe]",
)
@click.option("--copy", is_flag=True, help="With folders: copy images instead of linking to them.")
@common_options
def export(session: Session, target: Path, form: str | None, copy: bool) -> None:
    """Write all labels as CSV, JSON lines or a folder per class.

    TARGET is a file or a new folder; - is standard output.
    """
    from alloop.files import is_stream
    from alloop.loop.intake.labels import export_labels

    bare = "csv" if is_stream(target) else "folders"
    endings = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", "": bare}
    chosen = form or endings.get(target.suffix.lower())
    if chosen is None:
        raise click.UsageError(f"The ending {target.suffix} does not name a format; add --format.")
    n = export_labels(session.project(), target, chosen, copy=copy)  # type: ignore[arg-type]
    session.show({"labels": n, "target": str(target)}, f"{n} labels written to {target}.", written=target)
