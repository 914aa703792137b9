"""The job that scores the unlabeled images of a round, with all that the strategy needs to see."""

from collections.abc import Sequence

from alloop.composition import Need
from alloop.config.schema import Config
from alloop.engine.jobs import ScoreJob
from alloop.engine.settings import EngineSettings
from alloop.loop.choosing.evidence import wide_needs
from alloop.loop.choosing.pool_scores import features_beside
from alloop.project import Project
from alloop.records import ImageRef
from alloop.store.rounds import ModelRecord


def make_score_job(
    project: Project,
    number: int,
    config: Config,
    model: ModelRecord,
    unlabeled: Sequence[ImageRef],
    labeled: Sequence[ImageRef],
    pool: Sequence[ImageRef],
    device: str | None,
) -> ScoreJob:
    """Make the job of a round.

    Args:
        project: The workspace.
        number: Number of the round.
        config: Settings of the round, flags counted.
        model: Model of the round.
        unlabeled: Images to score.
        labeled: Training images; only their features are stored, if the strategy needs features.
        pool: Images among which those of the model's graph are, from `intake.teaching`.
        device: Device instead of `[model] device`.
    """
    needs, out = wide_needs(config.acquisition.strategy), project.paths.scores(number)
    return ScoreJob(
        settings=EngineSettings.of(config),
        model=model.files(project.folder),
        # By content, so that the same images give the same bits in whatever order they were added.
        images=tuple(sorted(unlabeled, key=lambda ref: ref.key)),
        cache=project.paths.cache,
        out=out,
        device=device,
        keep_members=Need.MEMBER_LOG_PROBS in needs,
        features_out=features_beside(out) if Need.FEATURES in needs else None,
        labeled=tuple(labeled),
        pool=tuple(pool),
    )
