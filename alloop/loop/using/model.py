"""The model of a workspace, opened to predict: the newest one, or that of a round. Nothing in the workspace changes."""

import dataclasses

from sqlalchemy.orm import Session

from alloop.config.load import set_values, validate_config
from alloop.config.schema import Config
from alloop.engine.classifier import Classifier
from alloop.engine.score_file import read_ood
from alloop.engine.settings import EngineSettings
from alloop.errors import ModelError
from alloop.files import sha256_of
from alloop.loop.choosing.pool_scores import AGAIN, suspect_threshold
from alloop.loop.intake.teaching import node_reader
from alloop.pool.outside import Reading
from alloop.project import Project
from alloop.store.images import find_depth
from alloop.store.rounds import ModelRecord, RoundRecord, find_last_model, find_model, find_round, find_round_number
from alloop.store.session import reading


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A model that predicts images of the pool and others.

    Attributes:
        classifier: The model. It reads cached features, and adds none.
        record: The stored model version.
        number: Number of its round.
        suspect_above: OOD score above which an image is suspect, by the scores of the model's pool; None if these
            scores do not exist.
        notes: Sentences about what a user should know of the predictions.
    """

    classifier: Classifier
    record: ModelRecord
    number: int
    suspect_above: float | None
    notes: tuple[str, ...]


def open_model(project: Project, number: int | None = None, device: str | None = None) -> OpenedModel:
    """Open the newest model, or that of a round.

    Args:
        project: The workspace. The right to read it is enough.
        number: Number of a round; None: the newest model.
        device: Device instead of `[model] device`.

    Raises:
        ModelError: There is no such model; it is damaged, or of an alloop whose models cannot be read.
        AlloopError: There is no such round.
    """
    with reading(project.database) as session:
        record, current = find_version(session, number)
        depth = find_depth(session)
    config = _settings_of(project, record)
    pool = project.config.pool
    classifier = Classifier.open(
        record.files(project.folder),
        EngineSettings.of(config),
        project.paths.cache,
        device,
        fills_cache=False,
        reading=Reading(pool.max_pixels, pool.truncated == "accept", depth),
        pool=node_reader(project, config),
    )
    bound, why_unknown = suspect_above(project, current, record)
    notes = [f"No image can be marked as suspect: {why_unknown}"] if why_unknown else []
    unknown = [name for name in project.config.project.classes if name not in record.classes]
    if unknown:
        notes.append(
            f"Model {record.name} was trained before these classes were added: {', '.join(unknown)}. It never predicts "
            "them; `alloop run` trains a new model."
        )
    return OpenedModel(classifier, record, current.number, bound, tuple(notes))


def find_version(session: Session, number: int | None) -> tuple[ModelRecord, RoundRecord]:
    """Return the newest model, or that of a round, and its round.

    Raises:
        ModelError: There is no such model.
        AlloopError: There is no such round.
    """
    record = find_last_model(session) if number is None else find_model(session, find_round(session, number).id)
    if record is None:
        missing = "There is no model yet" if number is None else f"Round {number} has no model"
        raise ModelError(f"{missing}.", "`alloop run` trains one as soon as two classes have labels.")
    return record, find_round(session, find_round_number(session, record.round_id))


def _settings_of(project: Project, record: ModelRecord) -> Config:
    """Return the settings that a model was trained with. Limits of the machine are the current ones."""
    frozen, today = validate_config(record.config, f"the config of model {record.name}"), project.config
    model = {"device": today.model.device, "engine": today.model.engine}
    return set_values(frozen, model=model, train={"workers": today.train.workers})


def suspect_above(project: Project, current: RoundRecord, record: ModelRecord) -> tuple[float | None, str]:
    """Return the OOD score above which an image is suspect, and an empty text; or None and the reason.

    The score comes from the round's scores of the pool, which must be those of this model.
    """
    if current.scores_path is None:
        return None, f"round {current.number} has no scores. {AGAIN}"
    path = project.folder / current.scores_path
    try:
        is_whole = sha256_of(path) == current.scores_sha256
    except OSError:
        is_whole = False
    if not is_whole:
        return None, f"the scores in {path} are missing or damaged. {AGAIN}"
    ood, model_sha256 = read_ood(path)
    if model_sha256 != record.sha256:
        return None, f"the scores in {path} are of another model. {AGAIN}"
    quantile = _settings_of(project, record).acquisition.suspect_quantile
    return suspect_threshold(ood, quantile), "" if len(ood) else f"the scores in {path} hold no image."
