"""The precision of features: in the cache's key, in the model version, and the same wherever the model predicts."""

import copy
import dataclasses
import logging

import pytest
import torch
from torch import nn

from alloop.engine import classifier, device, export, trunk_passes
from alloop.engine.build import build_hardware
from alloop.engine.classifier import Classifier
from alloop.engine.features import run_features
from alloop.engine.jobs import ExportJob, FeatureJob
from alloop.engine.model_files import load_model
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.engine.trunk_passes import prepare_trunk, run_trunk
from alloop.models.backbones import Backbone, load_backbone, state_digest

CPU = torch.device("cpu")


def _job(toys, precision: str) -> FeatureJob:
    config = toys.config(toys.trunk, weights="none", precision=precision)
    return FeatureJob(EngineSettings.of(config), toys.images[:20], toys.root / "cache")


@pytest.fixture
def model(toys):
    """A model of features in bfloat16."""
    config = toys.config(toys.trunk, weights="none", precision="bfloat16")
    return config, run_train(toys.train_job(config)).files


def _log_probs(files, toys, config, **options) -> torch.Tensor:
    open_ = Classifier.open(files, EngineSettings.of(config), toys.root / "cache", "cpu", **options)
    return torch.cat([part.calibrated_log_probs for part in open_.predict(toys.images)])


def test_auto_is_float32_on_a_cpu_and_bfloat16_on_a_card_that_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: (9 if where.index == 0 else 7, 0))

    found = [device.choose_precision("auto", torch.device(name)) for name in ("cpu", "cuda:0", "cuda:1", "mps")]

    assert found == ["float32", "bfloat16", "float32", "float32"]
    assert device.choose_precision("float32", torch.device("cuda:0")) == "float32"


def test_a_device_without_bfloat16_computes_it_on_request_and_says_that_it_is_slow(monkeypatch, caplog):
    monkeypatch.setattr(device, "has_bfloat16", lambda _: False)
    device._say_slow_bfloat16.cache_clear()

    with caplog.at_level(logging.WARNING):
        found = [device.choose_precision("bfloat16", CPU) for _ in range(2)]

    assert found == ["bfloat16"] * 2
    assert len(caplog.records) == 1
    assert "many times as long" in caplog.text


def test_each_precision_has_a_cache_of_its_own_and_a_change_says_how_many_are_computed_again(toys, caplog):
    first = run_features(_job(toys, "float32")).features
    with caplog.at_level(logging.WARNING):
        half = run_features(_job(toys, "bfloat16")).features
        assert "20 features are computed again: the cache has them in float32" in caplog.text
        caplog.clear()
        again = run_features(_job(toys, "float32")).features

    assert not caplog.records
    assert (first == again).all()
    gap = abs(first - half).max() / abs(first).max()
    assert 0 < gap < 0.02
    assert len(list((toys.root / "cache" / "features").iterdir())) == 2


def test_float32_features_keep_the_key_they_had_before_precision_was_a_setting():
    backbone = load_backbone("pixels")

    assert "precision" not in backbone.fingerprint()
    assert backbone.in_precision("bfloat16").fingerprint() == backbone.fingerprint() | {"precision": "bfloat16"}
    given = load_backbone("features:3")
    assert given.in_precision("bfloat16").fingerprint() == given.fingerprint()


def test_a_model_records_the_precision_and_predicts_in_it(toys, model, monkeypatch):
    config, files = model
    monkeypatch.setattr(classifier, "has_bfloat16", lambda _: True)
    used = []
    monkeypatch.setattr(
        "alloop.engine.trunk_passes.run_trunk", lambda trunk, images: used.append(trunk) or run_trunk(trunk, images)
    )

    today = toys.config(toys.trunk, weights="none", precision="float32")
    predicted = _log_probs(files, toys, today)

    assert load_model(files).precision == "bfloat16"
    assert load_model(files).as_trained(EngineSettings.of(today)).model.precision == "bfloat16"
    assert {trunk.backbone.precision for trunk in used} <= {"bfloat16"}
    assert torch.equal(predicted, _log_probs(files, toys, config))


def test_a_model_of_bfloat16_predicts_in_float32_where_the_device_has_no_bfloat16(toys, model, monkeypatch):
    config, files = model
    monkeypatch.setattr(classifier, "has_bfloat16", lambda _: True)
    expected = _log_probs(files, toys, config)
    monkeypatch.setattr(classifier, "has_bfloat16", lambda _: False)

    found = _log_probs(files, toys, config)

    assert not torch.equal(found, expected)
    torch.testing.assert_close(found.exp(), expected.exp(), atol=0.02, rtol=0)


def test_an_exported_model_of_bfloat16_features_has_alloops_numbers_in_float32(toys, model, monkeypatch):
    config, files = model
    monkeypatch.setattr(export, "has_onnx", lambda: False)
    monkeypatch.setattr(classifier, "has_bfloat16", lambda _: True)
    job = ExportJob(
        EngineSettings.of(config), files, toys.images[75:], toys.root / "cache", toys.root / "exported", card="# Model"
    )

    result = job.run()

    assert result.gaps["model.pt2"] < export.MOST


def test_networks_of_torchvision_become_bfloat16_except_batch_normalization_and_the_original_stays():
    backbone = load_backbone("resnet18", "none", 32)
    before = state_digest(backbone.module)

    trunk = prepare_trunk(backbone.in_precision("bfloat16"), CPU)

    kinds = {
        name: {
            parameter.dtype
            for module in trunk.module.modules()
            if isinstance(module, kind)
            for parameter in module.parameters()
        }
        for name, kind in (("convolutions", nn.Conv2d), ("norms", nn.BatchNorm2d))
    }
    assert kinds == {"convolutions": {torch.bfloat16}, "norms": {torch.float32}}
    assert state_digest(backbone.module) == before
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    half, full = (run_trunk(prepare_trunk(one, CPU), images) for one in (trunk.backbone, backbone))
    assert half.dtype == torch.float32
    assert 0 < float((half - full).norm() / full.norm()) < 0.05


def test_batch_normalization_behind_a_convolution_in_a_chain_becomes_a_part_of_it():
    shared = nn.Conv2d(3, 3, 1)
    module = nn.Sequential(
        nn.Sequential(shared, nn.BatchNorm2d(3), nn.ReLU()),
        nn.Sequential(nn.BatchNorm2d(3), shared),  # the wrong way round: stays
        nn.Sequential(shared, nn.BatchNorm2d(3, track_running_stats=False)),  # statistics of the batch: stays
    )
    module.eval()
    for number, norm in enumerate(part for part in module.modules() if isinstance(part, nn.BatchNorm2d)):
        if norm.running_mean is not None:
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.constant_(norm.bias, number)
    images = torch.randn(4, 3, 5, 5)
    expected = module(images)

    fused = copy.deepcopy(module)
    for chain in [part for part in fused.modules() if isinstance(part, nn.Sequential)]:
        trunk_passes._fuse_neighbors(chain)

    assert [type(part).__name__ for chain in fused for part in chain] == [
        "Conv2d", "Identity", "ReLU", "BatchNorm2d", "Conv2d", "Conv2d", "BatchNorm2d",
    ]  # fmt: skip
    assert torch.allclose(fused(images), expected, atol=1e-5)


def test_a_network_with_batch_normalization_in_chains_keeps_its_features_in_bfloat16():
    backbone = load_backbone("efficientnet_b0", "none", 64)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    trunk = prepare_trunk(backbone.in_precision("bfloat16"), CPU)

    half, full = (run_trunk(one, images) for one in (trunk, prepare_trunk(backbone, CPU)))

    assert not any(isinstance(part, nn.BatchNorm2d) for part in trunk.module.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in backbone.module.modules())
    assert 0 < float((half - full).norm() / full.norm()) < 0.1


class _Views(nn.Module):
    """Code that needs the usual memory order."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(images)
        return found.view(len(images), -1)


def test_a_trunk_that_cannot_be_reordered_runs_in_the_usual_order():
    backbone = Backbone(_Views().eval().requires_grad_(requires_grad=False), n_features=4 * 6 * 6, image_size=8)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)

    trunk = prepare_trunk(backbone, CPU)

    assert trunk.order == torch.contiguous_format
    assert torch.equal(run_trunk(trunk, images), backbone.module(backbone.normalize(images)))


def test_the_order_of_memory_changes_features_by_rounding_only_and_leaves_weights_that_can_be_trained():
    backbone = load_backbone("resnet18", "none", 64)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        plain = backbone.module(backbone.normalize(images))
        found = run_trunk(prepare_trunk(backbone, CPU), images)

    assert float(((found - plain).norm(dim=1) / plain.norm(dim=1)).max()) < 1e-5
    backbone.module.requires_grad_(requires_grad=True)


def test_hardware_of_a_cpu_has_one_size_of_batches(toys):
    settings = EngineSettings.of(toys.config())

    assert build_hardware(settings, "cpu").largest_batch == 0
    assert dataclasses.replace(build_hardware(settings, "cpu"), precision="bfloat16").batch_size == 32
