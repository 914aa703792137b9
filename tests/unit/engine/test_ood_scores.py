"""OOD scores of a pool in the score file, against the formulas applied to what the model says by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alloop.config.schema import AcquisitionConfig, Config, ModelConfig, TrainConfig
from alloop.engine.build import build_backbone
from alloop.engine.model_files import load_model
from alloop.engine.score import run_score
from alloop.engine.score_file import read_scores
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.errors import ModelError
from alloop.evaluation import ood
from alloop.models.backbones import Backbone
from alloop.pool.picture import Photo

MODELS = {
    "single": {"uncertainty": "single"},
    "heads": {"members": 3},
    "ensemble": {"uncertainty": "ensemble", "members": 2, "heads": 2},
    "tuned": {"mode": "finetune", "members": 2},
    "tuned-ensemble": {"mode": "finetune", "uncertainty": "ensemble", "members": 2},
    "dropout": {"uncertainty": "mc-dropout", "members": 3, "consistent_masks": True},
}


def _config(toys, ood_score: str, model: dict[str, object]) -> Config:
    train = TrainConfig(workers=0, epochs=2 if model.get("mode") == "finetune" else 40, batch_size=8)
    config = toys.config(toys.trunk, train=train, weights="none", **model)
    return config.model_copy(update={"acquisition": AcquisitionConfig(ood_score=ood_score)})


def _networks(files, config: Config, toys) -> list[tuple[Backbone, nn.Module]]:
    """Trunk and heads of every network of a version."""
    version = load_model(files)
    found = []
    for number in range(len(version.files)):
        network = version.load_network(number)
        backbone = build_backbone(EngineSettings.of(config), (toys.root,))
        if network.trunk:
            backbone.module.load_state_dict(network.trunk)
        found.append((backbone, network.heads))
    return found


def _inputs(backbone: Backbone, toys) -> Tensor:
    return backbone.normalize(torch.stack([backbone.preprocess(Photo(image)) for image in toys.images[75:]]))


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"dropout"}))
def test_odin_is_the_mean_over_networks_of_the_score_of_each(toys, name: str):
    config = _config(toys, "odin", MODELS[name])
    files = run_train(toys.train_job(config)).files

    scores = read_scores(run_score(toys.score_job(files, config)).path)

    alone = [
        ood.odin(lambda x, b=backbone, h=heads: h(b.module(x)), _inputs(backbone, toys), std=torch.tensor(backbone.std))
        for backbone, heads in _networks(files, config, toys)
    ]
    np.testing.assert_allclose(scores.ood, torch.stack(alone).mean(dim=0), rtol=1e-6)
    assert len(set(scores.ood.tolist())) > 10


@pytest.mark.parametrize("name", sorted(MODELS))
def test_gradnorm_is_the_mean_over_networks_of_the_score_of_each(toys, name: str):
    config = _config(toys, "gradnorm", MODELS[name])
    files = run_train(toys.train_job(config)).files

    scores = read_scores(run_score(toys.score_job(files, config)).path)

    if name == "dropout":  # masks: other logits, the same mean length of features
        assert len(set(scores.ood.tolist())) > 10
        return
    alone = []
    for backbone, heads in _networks(files, config, toys):
        features = backbone.module(_inputs(backbone, toys))
        alone.append(ood.gradnorm((features - heads.center) / heads.scale, heads(features)))
    np.testing.assert_allclose(scores.ood, torch.stack(alone).mean(dim=0), rtol=1e-3, atol=1e-4)


def test_odin_of_dropout_uses_the_same_passes_for_an_image_and_its_changed_copy(toys):
    config = _config(toys, "odin", MODELS["dropout"])
    files = run_train(toys.train_job(config)).files

    first, second = (
        read_scores(run_score(toys.score_job(files, config, images=images, out=toys.root / "scores")).path)
        for images in (toys.images[75:], toys.images[80:])
    )

    np.testing.assert_allclose(first.ood[5:], second.ood, rtol=1e-6)


def test_an_image_that_vanished_after_its_features_were_cached_has_no_odin_score(toys):
    plain, config = (_config(toys, name, MODELS["heads"]) for name in ("msp", "odin"))
    files = run_train(toys.train_job(config)).files
    run_score(toys.score_job(files, plain))
    Path(toys.images[80].path).unlink()

    result = run_score(toys.score_job(files, config))

    assert [image_id for image_id, _ in result.failed] == [toys.images[80].image_id]
    assert read_scores(result.path).image_ids.tolist() == [
        image.image_id for image in toys.images[75:] if image != toys.images[80]
    ]


def test_odin_asks_for_another_score_where_a_trunk_has_no_gradient(toys):
    (toys.root / "toy_trunk.py").write_text(
        (toys.root / "toy_trunk.py").read_text()
        + "class Cut(nn.Sequential):\n    def forward(self, x):\n        return super().forward(x).detach()\n"
        + "def cut():\n    return Backbone(Cut(*tiny().module), n_features=8, image_size=16)\n"
    )
    config = _config(toys, "odin", MODELS["single"])
    config = config.model_copy(
        update={"model": ModelConfig(backbone="toy_trunk:cut", weights="none", device="cpu", uncertainty="single")}
    )
    files = run_train(toys.train_job(config)).files

    with pytest.raises(ModelError, match="gives none") as caught:
        run_score(toys.score_job(files, config))

    assert "ood_score" in caught.value.hint
