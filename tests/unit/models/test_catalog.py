"""The list of published trunks: facts that the installed torchvision can confirm, and what is on this machine."""

from pathlib import Path

import pytest
import torch
import torchvision

from alloop.models import backbones
from alloop.models.catalog import list_published


def of_torchvision() -> list[tuple[str, str]]:
    return [
        (trunk.name, trunk.weights) for trunk in list_published() if ":" not in trunk.name and trunk.name != "pixels"
    ]


@pytest.mark.parametrize(("name", "weights"), of_torchvision())
def test_the_number_of_features_is_that_of_the_trunk(name: str, weights: str):
    (listed,) = [trunk for trunk in list_published() if (trunk.name, trunk.weights) == (name, weights)]
    # RegNet computes its widths with tensors, so that it cannot be built without numbers.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        module = torchvision.models.get_model(name, weights=None)
        _, n_features = backbones._cut_classifier(module)

    assert listed.n_features == n_features
    assert backbones.is_weights_name(name, weights)


def test_every_trunk_is_listed_once_and_a_number_has_a_source():
    listed = list_published()

    assert len({(trunk.name, trunk.weights) for trunk in listed}) == len(listed) >= 12
    for trunk in listed:
        assert bool(trunk.source) == (trunk.linear is not None or trunk.knn is not None), trunk.name


def test_a_file_is_there_once_it_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert [trunk.name for trunk in list_published() if trunk.is_there] == ["pixels"]

    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints" / "resnet50-0676ba61.pth").touch()
    (tmp_path / "hub" / "models--timm--vit_small_patch16_224.dino" / "blobs").mkdir(parents=True)

    there = [(trunk.name, trunk.weights) for trunk in list_published() if trunk.is_there]
    assert there == [("pixels", "none"), ("resnet50", "IMAGENET1K_V1")]
    snapshot = tmp_path / "hub" / "models--timm--vit_small_patch16_224.dino" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    assert [trunk.name for trunk in list_published() if trunk.is_there][-1] == "timm:vit_small_patch16_224.dino"
