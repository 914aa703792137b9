"""Exported folders: every kind of model gives alloop's numbers, and whatever does not is refused."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from alloop.config.schema import CalibrationConfig, Config, TrainConfig
from alloop.engine import export
from alloop.engine.classifier import Classifier
from alloop.engine.export import run_export
from alloop.engine.features import load_batches, run_features
from alloop.engine.jobs import ExportJob, ExportResult, FeatureJob
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.errors import ModelError
from alloop.records import ModelFiles

pytestmark = [pytest.mark.usefixtures("onnx_operators"), pytest.mark.slow]  # writing a file takes seconds

FROZEN = {"weights": "none"}


def _job(toys, files, config, **changes):
    values = {"images": toys.images[75:], "out": toys.root / "exported", "card": "# A model\n", **changes}
    return ExportJob(EngineSettings.of(config), files, cache=toys.root / "cache", **values)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model of MODELS, its exported folder, and what it was made from."""

    toys: Any
    config: Config
    files: ModelFiles
    result: ExportResult

    @property
    def folder(self) -> Path:
        return self.result.folder


@pytest.fixture(scope="module")
def exported(shared_toys) -> Callable[[str], Exported]:
    """Return a function that trains and exports a model of MODELS once for all tests, which only read it."""
    made: dict[str, Exported] = {}

    def export_once(name: str) -> Exported:
        if name not in made:
            model, train = MODELS[name]
            config = shared_toys.config(train=train, **model)
            files = _trained(shared_toys, config, out=shared_toys.root / name / "model")
            job = _job(shared_toys, files, config, out=shared_toys.root / name / "exported")
            made[name] = Exported(shared_toys, config, files, run_export(job))
            sys.modules.pop("toy_trunk", None)  # other tests have their own
        return made[name]

    return export_once


def _trained(toys, config, **changes):
    return run_train(toys.train_job(config, **{"pool": toys.images[:70], **changes})).files


def _pixels(toys, config, images):
    model_backbone = Classifier.open(_trained(toys, config), EngineSettings.of(config), toys.root / "cache").backbone
    hardware = export.build_hardware(EngineSettings.of(config), "cpu")
    return torch.cat([batch.images for batch in load_batches(images, model_backbone, hardware)])


@pytest.fixture
def no_onnx(monkeypatch) -> None:
    """Take the packages of the extra `onnx` away: writing an ONNX file takes most of the time of an export."""
    monkeypatch.setattr("alloop.engine.device.ONNX_PACKAGES", ("no_such_package",))


MODELS = {
    "smoothed": ({}, None),
    "raw": ({"pool_features": "off"}, None),
    "own trunk": ({"backbone": "toy_trunk:tiny", **FROZEN}, None),
    "ensemble": ({"uncertainty": "ensemble", "members": 2, "heads": 2}, None),
    "dropout": ({"uncertainty": "mc-dropout", "members": 5}, None),
    "raw dropout": ({"uncertainty": "mc-dropout", "members": 5, "pool_features": "off"}, None),
    "tuned": ({"backbone": "toy_trunk:tiny", "mode": "finetune", **FROZEN}, TrainConfig(workers=0, epochs=2)),
    "tuned ensemble": (
        {"backbone": "toy_trunk:tiny", "mode": "finetune", "uncertainty": "ensemble", "members": 2, **FROZEN},
        TrainConfig(workers=0, epochs=2),
    ),
    "side by side": ({"backbone": ("pixels", "toy_trunk:tiny"), **FROZEN}, None),
    "logit-norm": ({}, TrainConfig(workers=0, epochs=40, loss="logit-norm")),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_gives_alloops_numbers(exported, name):
    result = exported(name).result

    # `run_export` refuses a difference above 1e-4 itself; what it measured is far below.
    assert result.names == ("model.pt2", "model.onnx")
    assert max(result.gaps.values()) < 1e-5
    assert result.n_images == 15


@pytest.mark.parametrize("name", ["smoothed", "own trunk", "ensemble", "dropout"])
def test_the_distilled_head_is_exported_alone(exported, name, tmp_path):
    whole = exported(name)

    result = run_export(_job(whole.toys, whole.files, whole.config, out=tmp_path / "exported", is_distilled=True))

    assert max(result.gaps.values()) < 1e-5
    assert (result.folder / "model.onnx").stat().st_size < (whole.folder / "model.onnx").stat().st_size


def test_raw_heads_have_no_distilled_head(toys):
    config = toys.config(pool_features="off")
    with pytest.raises(ModelError, match="no distilled head: its heads are on raw features"):
        run_export(_job(toys, _trained(toys, config), config, is_distilled=True))


@pytest.mark.parametrize("method", ["none", "platt", "isotonic", "histogram-mass", "histogram-width", "auto"])
def test_every_calibrator_is_inside(toys, method, no_onnx):  # test_exported_module writes them for ONNX
    config = toys.config().model_copy(update={"calibration": CalibrationConfig(method=method)})
    holdout = {"holdout": toys.images[15:], "holdout_targets": toys.targets[15:]}
    result = run_export(_job(toys, _trained(toys, config, **holdout), config))
    assert max(result.gaps.values()) < 1e-5


def test_the_files_take_batches_of_any_size_and_give_what_alloop_gives(exported):
    made = exported("smoothed")
    toys, config, files = made.toys, made.config, made.files
    pixels = _pixels(toys, config, toys.images[80:])
    features = run_features(FeatureJob(EngineSettings.of(config), toys.images[80:], toys.root / "cache")).features
    model = Classifier.open(files, EngineSettings.of(config), toys.root / "cache")
    expected = model.predict_features(torch.from_numpy(features))

    loaded = torch.export.load(made.folder / "model.pt2").module()
    session = onnxruntime.InferenceSession(made.folder / "model.onnx")
    for size in (1, 2, 10):
        torch.testing.assert_close(loaded(pixels[:size]), expected[:size], rtol=0, atol=1e-4)
        found = session.run(None, {"images": pixels[:size].numpy()})[0]
        np.testing.assert_allclose(found, expected[:size], atol=1e-4)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-6)


def test_the_folder_describes_itself(exported):
    folder = exported("smoothed").folder

    assert sorted(path.name for path in folder.iterdir()) == [
        "classes.txt", "model-card.md", "model.onnx", "model.pt2", "predict.py", "preprocess.json",
    ]  # fmt: skip
    assert (folder / "classes.txt").read_text() == "vertical\nhorizontal\ncheckered\n"
    rule = json.loads((folder / "preprocess.json").read_text())
    (only,) = rule["inputs"]
    assert (only["name"], only["image_size"], only["interpolation"]) == ("images", 8, "bilinear")
    assert rule["sha256"]["classes.txt"] == hashlib.sha256((folder / "classes.txt").read_bytes()).hexdigest()
    card = (folder / "model-card.md").read_text()
    assert card.startswith("# A model\n")
    for name in ("model.pt2", "model.onnx", "predict.py"):
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in card


def test_the_program_in_the_folder_predicts_files(exported, tmp_path):
    made = exported("smoothed")
    toys, config = made.toys, made.config
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    files = [image.path for image in toys.images[80:84]]

    done = subprocess.run(
        [sys.executable, "-I", made.folder / "predict.py", *files, broken],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert "broken.png\tcannot be read" in done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == files
    session = onnxruntime.InferenceSession(made.folder / "model.onnx")
    log_probs = session.run(None, {"images": _pixels(toys, config, toys.images[80:84]).numpy()})[0]
    for row, expected in zip(rows, log_probs, strict=True):
        assert row[1] == ("vertical", "horizontal", "checkered")[expected.argmax()]
        assert float(row[2]) == pytest.approx(float(np.exp(expected.max())), abs=1e-6)


def test_the_program_prepares_an_image_for_each_of_two_trunks(exported):
    made = exported("side by side")
    toys, config, files = made.toys, made.config, made.files
    images = [image.path for image in toys.images[80:84]]

    done = subprocess.run(
        [sys.executable, "-I", made.folder / "predict.py", *images],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    sides = [one["image_size"] for one in json.loads((made.folder / "preprocess.json").read_text())["inputs"]]
    assert sides == [8, 16]
    (expected,) = Classifier.open(files, EngineSettings.of(config), toys.root / "cache").predict(images)
    for line, row in zip(done.stdout.splitlines(), expected.log_probs, strict=True):
        assert float(line.split("\t")[2]) == pytest.approx(float(row.max().exp()), abs=0.02)


def test_a_difference_refuses_the_export_and_leaves_no_folder(toys, monkeypatch, no_onnx):
    config = toys.config()
    files = _trained(toys, config)
    real = export._own_numbers
    monkeypatch.setattr(export, "_own_numbers", lambda *args: (real(*args) + torch.eye(3)[0]).log_softmax(-1))

    with pytest.raises(ModelError, match=r"model.pt2 gives class '\w+' of .*\.png the probability 0\.\d+, and alloop"):
        run_export(_job(toys, files, config))
    assert not (toys.root / "exported").exists()
    assert not list(toys.root.glob(".exported*"))


def test_a_trunk_that_cannot_be_traced_is_named(toys, monkeypatch):
    class Branches(nn.Module):
        def forward(self, images):
            rows = images.flatten(1)[:, :8]
            return rows if float(rows.sum()) > 0 else -rows

    config = toys.config(toys.trunk, pool_features="off", **FROZEN)
    files = _trained(toys, config)
    made = export.build_backbone(EngineSettings.of(config), (toys.root,))
    object.__setattr__(made, "module", Branches())
    monkeypatch.setattr(export, "build_backbone", lambda *_: made)

    with pytest.raises(ModelError, match=r"toy_trunk:tiny cannot be exported by torch.export") as error:
        run_export(_job(toys, files, config))
    assert "alloop predict" in error.value.hint
    assert not (toys.root / "exported").exists()


def test_images_that_cannot_be_read_are_left_out_of_the_check(toys, no_onnx):
    config = toys.config()
    files = _trained(toys, config)
    for number in range(75, 90):
        if number != 80:
            (toys.root / "images" / f"{number:02}.png").write_bytes(b"gone")
    assert run_export(_job(toys, files, config)).n_images == 1
    (toys.root / "images" / "80.png").unlink()
    with pytest.raises(ModelError, match="None of the 15 images"):
        run_export(_job(toys, files, config, out=toys.root / "again"))


def test_without_the_extra_there_is_no_onnx(toys, no_onnx):
    config = toys.config()
    result = run_export(_job(toys, _trained(toys, config), config))
    assert result.names == ("model.pt2",)
    assert not (toys.root / "exported" / "predict.py").exists()
