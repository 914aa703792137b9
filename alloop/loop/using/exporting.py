"""The job that exports a model version, and the images that the files are checked on."""

from pathlib import Path

from sqlalchemy.orm import Session

from alloop.config.load import validate_config
from alloop.engine.jobs import ExportJob
from alloop.engine.settings import EngineSettings
from alloop.loop.intake.teaching import list_possible_nodes
from alloop.project import Project
from alloop.store.images import list_refs
from alloop.store.rounds import ModelRecord

CHECKED = 64  # images that exported files are run on


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
    config = validate_config(model.config, f"the config of model {model.name}")
    refs = sorted(list_refs(session), key=lambda ref: ref.sha256)[:CHECKED]
    return ExportJob(
        settings=EngineSettings.of(config),
        model=model.files(project.folder),
        images=tuple(refs),
        cache=project.paths.cache,
        out=folder,
        card=card,
        is_distilled=is_distilled,
        pool=tuple(list_possible_nodes(session, config)),
    )
