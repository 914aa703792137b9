"""The job that exports a model version: which version, and the images that the files are checked on."""

from pathlib import Path

from sqlalchemy.orm import Session

from alloop.config.load import validate_config
from alloop.engine.jobs import ExportJob
from alloop.engine.settings import EngineSettings
from alloop.errors import ModelError
from alloop.loop.choosing.pool_scores import load_scores, suspect_bound
from alloop.project import Project
from alloop.store.images import list_refs
from alloop.store.rounds import ModelRecord, RoundRecord, find_last_model, find_model, find_round, list_rounds

CHECKED = 64  # images that exported files are run on


def find_version(session: Session, number: int | None) -> tuple[ModelRecord, RoundRecord]:
    """Return the newest model, or that of a round, and its round.

    Raises:
        ModelError: There is no such model.
    """
    rounds = {row.id: row for row in list_rounds(session)}
    model = find_last_model(session) if number is None else find_model(session, find_round(session, number).id)
    if model is None:
        what = "There is no model yet" if number is None else f"Round {number} has no model"
        raise ModelError(f"{what}.", "`alloop run` trains one as soon as two classes have labels.")
    return model, rounds[model.round_id]


def find_suspect_bound(project: Project, current: RoundRecord, model: ModelRecord) -> float | None:
    """Return the OOD score above which images of a round's pool are suspect; None if the round has no scores."""
    settings = validate_config(model.config, f"the config of model {model.name}").acquisition
    try:
        scores = load_scores(project, current, settings)
    except ModelError:  # its file is gone; the card can do without
        return None
    return None if scores is None else suspect_bound(scores.scores, settings.suspect_quantile)


def make_export_job(
    session: Session, project: Project, model: ModelRecord, folder: Path, card: str, *, is_distilled: bool = False
) -> ExportJob:
    """Make the job. The files are checked on 64 images of the pool, those with the smallest hashes.

    Args:
        session: Database session to read from.
        project: The workspace.
        model: The model version.
        folder: Folder to write.
        card: Text of the model card.
        is_distilled: True for the distilled head only.
    """
    refs = sorted(list_refs(session), key=lambda ref: ref.sha256)[:CHECKED]
    return ExportJob(
        settings=EngineSettings.of(validate_config(model.config, f"the config of model {model.name}")),
        model=model.files(project.folder),
        images=tuple(refs),
        cache=project.paths.cache,
        out=folder,
        card=card,
        is_distilled=is_distilled,
    )
