"""Trunks run by ONNX Runtime: the same features, a file that is made once, and PyTorch where that is impossible."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from alloop.engine import features, onnx_trunk
from alloop.engine.build import Hardware, build_backbone, build_hardware
from alloop.engine.device import choose_onnx
from alloop.engine.jobs import FeatureJob
from alloop.engine.onnx_trunk import prepare_with_onnx
from alloop.engine.settings import EngineSettings
from alloop.engine.trunk_passes import run_trunk
from alloop.errors import ConfigError
from alloop.models.backbones import Backbone

pytestmark = pytest.mark.usefixtures("onnx_operators")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def every_trunk_and_number_of_images(monkeypatch):
    monkeypatch.setattr(onnx_trunk, "SMALL", 0)
    monkeypatch.setattr(onnx_trunk, "MANY", 2)


def small_trunk() -> Backbone:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Backbone(nn.Sequential(*layers).eval(), n_features=8, image_size=16)


class Branching(nn.Module):
    """A module whose result depends on a Python branch on a value, which no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        rows = self.norm(images).flatten(1)[:, :8]
        return rows + 1 if bool(rows.sum() > 0) else rows


class Doubled(onnx_trunk._OnnxModule):
    def forward(self, images):
        return 2 * super().forward(images)


def pixels(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def is_onnx(trunk) -> bool:
    return isinstance(trunk.module, onnx_trunk._OnnxModule)


def test_features_are_pytorchs_for_batches_of_any_size(tmp_path):
    backbone = small_trunk()
    fast = prepare_with_onnx(backbone, CPU, tmp_path, 2)
    slow = prepare_with_onnx(backbone, CPU, tmp_path / "elsewhere", 1)

    assert is_onnx(fast) and not is_onnx(slow)
    for n in (1, 2, 33):
        torch.testing.assert_close(run_trunk(fast, pixels(n)), run_trunk(slow, pixels(n)), rtol=1e-5, atol=1e-6)


def test_the_file_is_made_for_many_images_and_then_used_for_any_number(tmp_path, monkeypatch):
    backbone = small_trunk()
    assert not is_onnx(prepare_with_onnx(backbone, CPU, tmp_path, 1))
    assert not list(tmp_path.iterdir())
    assert is_onnx(prepare_with_onnx(backbone, CPU, tmp_path, 2))
    (kept,) = tmp_path.iterdir()

    monkeypatch.setattr(onnx_trunk, "_onnx_bytes", lambda *_: pytest.fail("it is made again"))

    assert is_onnx(prepare_with_onnx(backbone, CPU, tmp_path, 1))
    assert kept.suffix == ".onnx"


def test_another_trunk_has_another_file(tmp_path):
    one, other = small_trunk(), small_trunk()
    with torch.no_grad():
        other.module[0].weight.mul_(2)
    for backbone in (one, other):
        prepare_with_onnx(backbone, CPU, tmp_path, 2)

    assert len(list(tmp_path.iterdir())) == 2


def test_a_trunk_that_cannot_be_traced_runs_in_pytorch_and_is_not_tried_again(tmp_path, monkeypatch, caplog):
    backbone = Backbone(Branching().eval(), n_features=8, image_size=16)

    with caplog.at_level(logging.INFO):
        trunk = prepare_with_onnx(backbone, CPU, tmp_path, 2)
    assert not is_onnx(trunk)
    assert "PyTorch runs this trunk, because ONNX Runtime cannot" in caplog.text
    (note,) = tmp_path.iterdir()
    assert note.name.endswith(".refused.txt") and note.read_text().strip()

    monkeypatch.setattr(onnx_trunk, "_onnx_bytes", lambda *_: pytest.fail("it is tried again"))
    assert not is_onnx(prepare_with_onnx(backbone, CPU, tmp_path, 2))


def test_other_features_are_noticed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(onnx_trunk, "_OnnxModule", Doubled)

    with caplog.at_level(logging.INFO):
        trunk = prepare_with_onnx(small_trunk(), CPU, tmp_path, 2)

    assert type(trunk.module) is nn.Sequential
    assert "differ from PyTorch's by 1e+00 of their length" in caplog.text


def test_a_damaged_file_is_made_again_the_next_time(tmp_path):
    backbone = small_trunk()
    prepare_with_onnx(backbone, CPU, tmp_path, 2)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])

    assert not is_onnx(prepare_with_onnx(backbone, CPU, tmp_path, 2))
    assert not list(tmp_path.iterdir())
    assert is_onnx(prepare_with_onnx(backbone, CPU, tmp_path, 2))


def test_a_folder_that_cannot_be_written_leaves_the_trunk_to_pytorch(tmp_path):
    (tmp_path / "file").touch()

    assert not is_onnx(prepare_with_onnx(small_trunk(), CPU, tmp_path / "file" / "trunks", 2))


def test_a_trunk_without_batch_normalization_stays_with_pytorch(tmp_path):
    backbone = small_trunk()
    backbone.module[1] = nn.Identity()

    assert not is_onnx(prepare_with_onnx(backbone, CPU, tmp_path, 2))
    assert not list(tmp_path.iterdir())


def test_a_very_small_trunk_stays_with_pytorch(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_trunk, "SMALL", 1000)

    assert not is_onnx(prepare_with_onnx(small_trunk(), CPU, tmp_path, 2))
    assert not list(tmp_path.iterdir())


def test_the_engine_that_settings_ask_for():
    assert choose_onnx("auto", CPU, "float32")
    assert choose_onnx("onnxruntime", CPU, "float32")
    assert not choose_onnx("torch", CPU, "float32")
    assert not choose_onnx("auto", CPU, "bfloat16")
    assert not choose_onnx("auto", torch.device("cuda"), "float32")
    with pytest.raises(ConfigError, match="runs on a CPU in float32, and here features are computed on cuda"):
        choose_onnx("onnxruntime", torch.device("cuda"), "float32")


def test_without_the_extra_pytorch_runs_trunks_and_asking_for_it_is_refused(monkeypatch):
    monkeypatch.setattr("alloop.engine.device.has_onnx", lambda: False)

    assert not choose_onnx("auto", CPU, "float32")
    with pytest.raises(ConfigError, match="not installed") as caught:
        choose_onnx("onnxruntime", CPU, "float32")
    assert "alloop[onnx]" in str(caught.value.hint)


def test_cached_features_of_the_two_engines_agree(toys):
    found = {}
    for engine in ("onnxruntime", "torch"):
        config = toys.config(backbone="toy_trunk:tiny", weights="none", engine=engine)
        settings = EngineSettings.of(config)
        assert build_hardware(settings, "cpu").has_onnx == (engine == "onnxruntime")
        job = FeatureJob(settings, toys.images, toys.root / engine)
        found[engine] = features.run_features(job).features

    assert len(list((toys.root / "onnxruntime" / "trunks").glob("*.onnx"))) == 1
    assert not (toys.root / "torch" / "trunks").exists()
    np.testing.assert_allclose(found["onnxruntime"], found["torch"], rtol=1e-4, atol=1e-6)
    assert build_backbone(settings, (toys.root,)).fingerprint()["trunk"]  # one key for both engines


def test_images_outside_the_cache_use_the_file_too(toys, monkeypatch):
    settings = EngineSettings.of(toys.config(backbone="toy_trunk:tiny", weights="none"))
    hardware = Hardware(CPU, 8, 0, has_onnx=True)
    backbone = build_backbone(settings, (toys.root,))
    cache = features.open_alone(toys.root / "cache", backbone.fingerprint())
    ran = []
    forward = onnx_trunk._OnnxModule.forward
    monkeypatch.setattr(
        onnx_trunk._OnnxModule, "forward", lambda self, images: (ran.append(len(images)), forward(self, images))[1]
    )

    preparation = features.Preparation(hardware, toys.root / "cache")
    rows, places, failed = features.look_up_features(
        toys.images[:10], cache, backbone, hardware, preparation, lambda n: None
    )

    assert rows.shape == (10, 8) and places == list(range(10)) and failed == ()
    assert sum(ran) == 10 + 3  # three random images compare the engines first
    features.look_up_features(toys.images[10:14], cache, backbone, hardware, preparation, lambda n: None)
    assert sum(ran) == 10 + 3 + 4  # and not again
