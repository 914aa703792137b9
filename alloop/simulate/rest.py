"""Accuracy on images that nobody was asked about, which only a simulation can know."""

from collections.abc import Mapping

from alloop.config.load import validate_config
from alloop.engine.jobs import ScoreJob
from alloop.engine.score_file import read_scores
from alloop.engine.settings import EngineSettings
from alloop.errors import ModelError
from alloop.evaluation.intervals import wilson
from alloop.loop.intake.teaching import list_possible_nodes
from alloop.loop.workbench import Tools
from alloop.records import Interval, Split
from alloop.store.images import list_refs
from alloop.store.rounds import find_last_model
from alloop.store.session import reading


def accuracy_on_rest(tools: Tools, truth: Mapping[str, str]) -> Interval | None:
    """Return the accuracy of the newest model on the unlabeled train images, with Wilson's interval; None without them.

    Under an active strategy these images are not a random sample of the pool, because hard images were asked about.

    Args:
        tools: Tools of the workspace.
        truth: Content hash → class.

    Raises:
        ModelError: There is no model yet.
    """
    project = tools.project
    with reading(project.database) as session:
        model = find_last_model(session)
        if model is None:
            raise ModelError("There is no model yet.", "Run a round first.")
        config = validate_config(model.config, f"the config of model {model.name}")
        refs = list_refs(session, Split.TRAIN, labeled=False)
        pool = list_possible_nodes(session, config)
    if not refs:
        return None
    job = ScoreJob(
        settings=EngineSettings.of(config),
        model=model.files(project.folder),
        images=tuple(refs),
        cache=project.paths.cache,
        out=project.folder / "runs" / "rest.parquet",
        pool=tuple(pool),
    )
    scores = read_scores(tools.executor.submit(job, tools.progress).path)
    pairs = zip(scores.sha256s, scores.predicted, strict=True)
    return wilson(sum(truth[sha256] == predicted for sha256, predicted in pairs), len(scores.sha256s))
