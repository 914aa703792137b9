"""Features of public sets, and a folder in which models are trained on them as a round trains them."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from alloop.config.schema import Config, ModelConfig, ProjectConfig
from alloop.engine.build import build_backbone
from alloop.engine.jobs import ScoreJob, TrainJob
from alloop.engine.score import run_score
from alloop.engine.score_file import read_rows
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.pool.cache import FeatureCache
from alloop.records import ImageRef, ModelFiles

sys.path += [str(Path(__file__).parents[1] / name) for name in ("label_efficiency", "calibration")]
import data
from sets import OWN_TEST, load_task

NOBODY = np.empty(0, dtype=np.int64)


def load_features(name: str, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return features [N, D] and classes [N] of a set: pixels of digits and Fashion-MNIST, else those of a trunk."""
    if name != "fashion-mnist":
        task = load_task(name, 0, work)
        return np.concatenate([task.F, task.F_test]), np.concatenate([task.y, task.y_test])
    parts = [data.fashion_pixels(part, n) for part, n in zip(("train", "test"), OWN_TEST[name], strict=True)]
    pixels, labels = (np.concatenate(both) for both in zip(*parts, strict=True))
    return (pixels.reshape(len(pixels), -1) / 255).astype(np.float32), labels.astype(np.int64)


class Place:
    """A folder in which models are trained on features, and predict."""

    def __init__(self, folder: Path, F: np.ndarray, y: np.ndarray, pool: np.ndarray, seed: int) -> None:
        self.folder, self.y, self.pool, self.seed, self.n = folder, y, pool, seed, 0
        self.refs = [ImageRef(i, hashlib.sha256(str(i).encode()).hexdigest(), f"{i}") for i in range(len(F))]
        self.classes = tuple(f"class {k}" for k in range(int(y.max()) + 1))
        model = ModelConfig(backbone=f"features:{F.shape[1]}", weights="none")
        self.settings = EngineSettings.of(Config(project=ProjectConfig(classes=self.classes), model=model))
        cache = FeatureCache(folder / "features", build_backbone(self.settings).fingerprint(), F.shape[1])
        cache.add([ref.sha256 for ref in self.refs], F.astype(np.float32))

    def train(self, rows: np.ndarray, targets: np.ndarray, holdout: np.ndarray = NOBODY) -> ModelFiles:
        self.n += 1
        job = TrainJob(
            settings=self.settings,
            classes=self.classes,
            images=tuple(self.refs[i] for i in rows),
            targets=tuple(targets.tolist()),
            holdout=tuple(self.refs[i] for i in holdout),
            holdout_targets=tuple(self.y[holdout].tolist()),
            seed=self.seed,
            cache=self.folder,
            out=self.folder / f"model-{self.n}",
            pool=tuple(self.refs[i] for i in self.pool),
            is_kept=False,
        )
        return run_train(job).files

    def predict(self, model: ModelFiles, rows: np.ndarray, *, is_calibrated: bool) -> np.ndarray:
        images = tuple(self.refs[i] for i in rows)
        out = self.folder / "scores.parquet"
        job = ScoreJob(self.settings, model, images, self.folder, out, is_calibrated=is_calibrated)
        return read_rows(run_score(job).path, "log_probs", rows.astype(np.int64)).double().numpy()
