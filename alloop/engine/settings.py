"""The part of the settings that the engine reads: what training, scoring and features depend on, and nothing else."""

import dataclasses
from typing import Self

from alloop.config.schema import Config, ModelConfig, TrainConfig
from alloop.records import Precision


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """Settings that travel with a job. Addresses, keys and other tables of alloop.toml stay where they are.

    Attributes:
        model: Table [model].
        train: Table [train].
        seed: [project] seed, from which untrained trunks get their weights.
        task: Name of the task.
        calibration: [calibration] method.
        ood_score: [acquisition] ood_score.
    """

    model: ModelConfig
    train: TrainConfig
    seed: int
    task: str
    calibration: str
    ood_score: str

    @classmethod
    def of(cls, config: Config) -> Self:
        """Take the engine's part out of the settings."""
        return cls(
            model=config.model,
            train=config.train,
            seed=config.project.seed,
            task=config.project.task,
            calibration=config.calibration.method,
            ood_score=config.acquisition.ood_score,
        )

    def with_precision(self, precision: Precision) -> Self:
        """Return the settings with another [model] precision."""
        return dataclasses.replace(self, model=self.model.model_copy(update={"precision": precision}))
