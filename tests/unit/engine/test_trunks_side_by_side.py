"""Jobs with trunks side by side: caches of single trunks are used, and everything that looks at images works."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from alloop.engine import features as engine_features
from alloop.engine import trunk_passes
from alloop.engine.build import build_backbone, build_hardware, search_paths
from alloop.engine.classifier import Classifier
from alloop.engine.features import ensure_features, run_features
from alloop.engine.jobs import FeatureJob
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.errors import ModelError


@pytest.fixture
def both(toys):
    """Settings with two trunks: the pixels, and the toys' own trunk."""
    return toys.config(("pixels", toys.trunk))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record D of the trunk for every batch that passes a trunk."""
    seen: list[int] = []
    run = trunk_passes.run_trunk

    def counted(trunk, images):
        seen.append(trunk.backbone.n_features)
        return run(trunk, images)

    monkeypatch.setattr(trunk_passes, "run_trunk", counted)
    return seen


def take(toys, config) -> np.ndarray:
    job = FeatureJob(EngineSettings.of(config), toys.images, toys.root / "cache")
    return run_features(job).features


def test_a_second_trunk_is_computed_alone_and_beside_the_cached_first(toys, both, computed):
    pixels = take(toys, toys.config())
    assert set(computed) == {1024}
    computed.clear()

    joined = take(toys, both)

    assert set(computed) == {8}
    computed.clear()
    own = take(toys, toys.config(toys.trunk))
    assert take(toys, toys.config((toys.trunk, "pixels"))).shape == joined.shape == (90, 1032)
    assert computed == []
    halves = [rows / np.linalg.norm(rows, axis=1, keepdims=True) / np.sqrt(2) for rows in (pixels, own)]
    np.testing.assert_allclose(joined, np.concatenate(halves, axis=1), atol=1e-6)


def test_the_cache_of_a_trunk_is_where_it_is_without_the_other(toys, both):
    take(toys, both)
    beside = {path.name for path in (toys.root / "cache" / "features").iterdir()}

    for path in (toys.root / "cache" / "features").glob("*/*.npy"):
        path.unlink()
    for config in (toys.config(), toys.config(toys.trunk)):
        take(toys, config)

    assert {path.name for path in (toys.root / "cache" / "features").iterdir()} == beside
    assert len(beside) == 2


def test_cached_features_and_features_by_the_trunks_are_the_same(toys, both):
    settings = EngineSettings.of(both)
    backbone = build_backbone(settings, search_paths(toys.root / "cache"))

    rows, positions, failed = engine_features.trunk_features(backbone, toys.images, build_hardware(settings, "cpu"))

    assert (positions, failed) == (list(range(90)), ())
    np.testing.assert_allclose(rows.numpy(), take(toys, both), atol=1e-6)


def test_an_image_that_a_later_trunk_cannot_read_has_no_features(toys, both):
    settings = EngineSettings.of(both)
    take(toys, toys.config())
    broken = toys.images[7]
    Path(broken.path).write_bytes(b"not an image")

    cache, failed = ensure_features(
        toys.images,
        build_backbone(settings, search_paths(toys.root / "cache")),
        toys.root / "cache",
        build_hardware(settings, "cpu"),
    )

    assert [image_id for image_id, _ in failed] == [broken.image_id]
    rest = [image.key for image in toys.images if image is not broken]
    assert cache.take(rest).shape == (89, 1032)
    assert cache.missing([*rest, broken.key]) == [broken.key]
    with pytest.raises(ModelError, match="1 of 1 images have no features"):
        cache.take([broken.key])


@pytest.mark.parametrize("model", [{}, {"uncertainty": "mc-dropout", "members": 3}, {"uncertainty": "ensemble"}])
def test_a_model_on_two_trunks_is_trained_scored_and_described(toys, model):
    config = toys.config(("pixels", toys.trunk), **model)

    trained = run_train(toys.train_job(config))
    scored = run_score(toys.score_job(trained.files, config))

    log_probs = np.concatenate([rows for _, rows in read_log_probs(scored.path)])
    assert (log_probs.argmax(axis=1) == np.array(toys.targets[75:])).mean() > 0.9
    metadata = json.loads((trained.files.folder / "model.json").read_text())
    trunks = metadata["backbone"]["side_by_side"]
    assert [trunk["n_features"] for trunk in trunks] == [1024, 8]
    assert metadata["config"]["model"]["backbone"] == ["pixels", toys.trunk]


@pytest.mark.parametrize("names", [("pixels",), ("toy_trunk:tiny", "pixels"), ("pixels", "toy_trunk:untrained")])
def test_a_model_refuses_other_trunks(toys, both, names):
    trained = run_train(toys.train_job(both))

    with pytest.raises(ModelError, match="was trained on another backbone"):
        run_score(toys.score_job(trained.files, toys.config(names[0] if len(names) == 1 else names)))


def test_a_list_of_one_is_the_same_model_and_the_same_cache(toys, computed):
    alone = run_train(toys.train_job(toys.config()))
    computed.clear()

    listed = run_train(toys.train_job(toys.config(("pixels",)), out=toys.root / "runs" / "again"))

    assert computed == []
    assert listed.files.sha256 == alone.files.sha256


def test_odin_scores_images_through_both_trunks(toys, both):
    trained = run_train(toys.train_job(both))
    model = Classifier.open(trained.files, EngineSettings.of(both), toys.root / "cache")

    scores, failed = model.odin(toys.images[75:])

    assert failed == ()
    assert scores.shape == (15,)
    assert bool(torch.isfinite(scores).all())
    assert len(set(scores.tolist())) == 15


def test_smoothed_features_are_made_of_both_trunks_and_found_again(toys, both):
    trained = run_train(toys.train_job(both, pool=toys.images))
    made = list((toys.root / "cache" / "pool_features").glob("*.safetensors"))
    run_score(toys.score_job(trained.files, both))

    again = run_train(toys.train_job(both, pool=toys.images, out=toys.root / "runs" / "again"))

    assert json.loads((trained.files.folder / "model.json").read_text())["pool_features"]["is_on"]
    assert again.files.sha256 == trained.files.sha256
    assert list((toys.root / "cache" / "pool_features").glob("*.safetensors")) == made


def test_an_untrained_trunk_beside_a_trained_one_switches_smoothed_features_off(toys):
    config = toys.config(("pixels", "squeezenet1_1"), weights="none", image_size=32)

    trained = run_train(toys.train_job(config, pool=toys.images))

    about = json.loads((trained.files.folder / "model.json").read_text())["pool_features"]
    assert about == {"is_on": False, "reason": "the trunk has random weights"}
