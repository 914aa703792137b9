"""Runs jobs here and now. Every executor has these methods; nothing that calls them knows which one it is."""

from alloop.engine.features import run_features
from alloop.engine.jobs import FeatureJob, FeatureResult, ScoreJob, ScoreResult, TrainJob, TrainResult
from alloop.engine.score import run_score
from alloop.engine.train import run_train
from alloop.progress import Progress, silent


class LocalExecutor:
    """Submitting is calling."""

    def train(self, job: TrainJob, progress: Progress = silent) -> TrainResult:
        return run_train(job, progress)

    def score(self, job: ScoreJob, progress: Progress = silent) -> ScoreResult:
        return run_score(job, progress)

    def features(self, job: FeatureJob, progress: Progress = silent) -> FeatureResult:
        return run_features(job, progress)
