"""`alloop export-model`: a model as files that other programs can use."""

from pathlib import Path

import click

from alloop.cli._options import Session, common_options


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--round", "number", type=click.IntRange(min=0), help="Model of this round.  [default: the newest]")
@click.option(
    "--heads",
    type=click.Choice(["all", "distilled"]),
    default="all",
    show_default=True,
    help="All heads with the graph of the pool, or one small head that imitates them.",
)
@common_options
def export_model(session: Session, folder: Path, number: int | None, heads: str) -> None:
    """Write the model to FOLDER, for other programs.

    FOLDER must be new or empty. It gets model.pt2 (for PyTorch) and, with `pip install 'alloop[onnx]'`, model.onnx:
    an image as uint8 RGB goes in, calibrated log-probabilities come out. preprocess.json says how to prepare an image,
    predict.py does it with onnxruntime, and model-card.md says what the model was taught and how good it is.

    Both files are run on 64 images of the pool before FOLDER appears. If a probability differs from alloop's by more
    than 0.0001, nothing is exported.

    The files hold features of up to 50,000 images of the pool (not the images), which the smoothed heads need. With
    --heads distilled they hold none: one linear head imitates the model, and keeps most of what the pool teaches.
    """
    from alloop.loop.using.exporting import make_export_job
    from alloop.loop.using.model import find_version, suspect_above
    from alloop.report.model_card import make_card
    from alloop.store.session import reading

    tools = session.tools()
    with reading(tools.project.database) as rows:
        model, of_round = find_version(rows, number)
        bound, _ = suspect_above(tools.project, of_round, model)
        is_distilled = heads == "distilled"
        card = make_card(rows, tools.project, model, of_round.number, bound, is_distilled=is_distilled)
        job = make_export_job(rows, tools.project, model, folder.absolute(), card, is_distilled=is_distilled)
    result = tools.executor.submit(job, tools.progress)
    gap = max(result.gaps.values())
    lines = [
        f"Model {model.name} in {folder}: {', '.join(result.names)}.",
        f"Checked on {result.n_images} images: probabilities differ from alloop's by at most {gap:.1e}.",
    ]
    if "model.onnx" not in result.names:
        lines.append("For model.onnx and predict.py, install the extra: pip install 'alloop[onnx]'.")
    data = {
        "folder": str(folder.absolute()),
        "model": model.name,
        "files": list(result.names),
        "largest_difference": dict(result.gaps),
        "images_checked": result.n_images,
    }
    session.show(data, "\n".join(lines))
