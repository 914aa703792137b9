"""The example's own backbone on real photos, from the hook to calibrated predictions."""

import csv
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from alloop.config.schema import Config, ModelConfig, ProjectConfig, TrainConfig
from alloop.engine.jobs import TrainJob
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.evaluation.metrics import accuracy, nll_per_image
from alloop.records import ImageRef

CLASSES = ("cardboard", "glass", "metal", "paper", "plastic", "trash")
EXAMPLE = Path(__file__).parents[2] / "examples" / "trashnet"


def _unpack(archive: Path, folder: Path, n: int) -> tuple[list[ImageRef], list[int]]:
    """A random sample of TrashNet's photos, written as files."""
    with zipfile.ZipFile(archive) as packed:
        rows = list(csv.DictReader(io.TextIOWrapper(packed.open("labels.csv"))))
        picked = [rows[position] for position in np.random.default_rng(0).permutation(len(rows))[:n]]
        refs = []
        for number, row in enumerate(picked):
            data = packed.read(row["file"])
            path = folder / f"{number:03}.jpg"
            path.write_bytes(data)
            refs.append(ImageRef(number, hashlib.sha256(data).hexdigest(), str(path)))
    return refs, [CLASSES.index(row["label"]) for row in picked]


@pytest.mark.slow
def test_an_own_backbone_learns_real_photos_from_a_hundred_labels(real_data, tmp_path, monkeypatch):
    refs, targets = _unpack(real_data / "trashnet.zip", tmp_path, 200)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    config = Config(
        project=ProjectConfig(classes=CLASSES),
        model=ModelConfig(backbone="backbone:efficientnet_lite0", device="cpu"),
        train=TrainConfig(workers=0),
    )

    result = run_train(
        TrainJob(
            settings=EngineSettings.of(config),
            classes=CLASSES,
            images=tuple(refs[:100]),
            targets=tuple(targets[:100]),
            holdout=tuple(refs[100:]),
            holdout_targets=tuple(targets[100:]),
            seed=0,
            cache=tmp_path / "cache",
            out=tmp_path / "model",
        )
    )

    log_probs, truth = result.holdout_calibrated_log_probs, np.array(targets[100:])
    # The most frequent class is 24 % of TrashNet; benchmarks/recipe measures 0.70 and 0.82 at 100 labels.
    assert accuracy(np.exp(log_probs), truth) > 0.6
    assert nll_per_image(log_probs, truth).mean() < 1.1
