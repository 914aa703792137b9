"""Predictions of chosen images by a stored model, without its calibrator."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from alloop.config.load import validate_config
from alloop.engine.jobs import ScoreJob, ScoreResult
from alloop.engine.settings import EngineSettings
from alloop.loop.intake.teaching import list_possible_nodes
from alloop.loop.workbench import Tools
from alloop.records import ImageRef
from alloop.store.rounds import ModelRecord
from alloop.store.session import reading


@contextlib.contextmanager
def scored_apart(
    tools: Tools, model: ModelRecord, refs: Sequence[ImageRef], device: str | None = None
) -> Iterator[ScoreResult]:
    """Score images with a model but without its calibrator. The file exists until the block ends.

    Args:
        tools: Tools of the workspace.
        model: The model, which is used with the settings that it was trained with.
        refs: Images to score, in the order of the file.
        device: Device instead of `[model] device`.

    Raises:
        ModelError: The model is damaged, or belongs to another backbone.
    """
    project = tools.project
    config = validate_config(model.config, f"the config of model {model.name}")
    with reading(project.database) as session:
        pool = list_possible_nodes(session, config)
    with tempfile.TemporaryDirectory(prefix="alloop-") as folder:
        job = ScoreJob(
            settings=EngineSettings.of(config),
            model=model.files(project.folder),
            images=tuple(refs),
            cache=project.paths.cache,
            out=Path(folder) / "uncalibrated.parquet",
            device=device,
            is_calibrated=False,
            pool=tuple(pool),
        )
        yield tools.executor.submit(job, tools.progress)
