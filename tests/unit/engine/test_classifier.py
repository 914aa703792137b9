"""One object predicts, whatever the model: by images as scoring does, by features as strategies do."""

import dataclasses
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from alloop.config.schema import AcquisitionConfig, TrainConfig
from alloop.engine import model_files
from alloop.engine.classifier import Classifier
from alloop.engine.features import count_features, run_features
from alloop.engine.jobs import FeatureJob
from alloop.engine.model_files import load_model
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs, read_rows, read_scores
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.engine.trunk_file import read_trunk_features
from alloop.errors import ModelError
from alloop.models import backbones
from alloop.predictive import mean_log_probs
from alloop.records import Calibration


def _log_probs(path):
    return torch.cat([rows for _, rows in read_log_probs(path)])


@pytest.mark.parametrize("model", [{"members": 2}, {"uncertainty": "ensemble", "members": 2, "heads": 3}])
def test_the_head_says_of_features_what_the_scores_say(toys, model):
    config = toys.config(**model)
    files = run_train(toys.train_job(config)).files
    path = run_score(toys.score_job(files, config)).path
    job = FeatureJob(EngineSettings.of(config), toys.images[75:], toys.root / "cache")

    features = run_features(job).features

    assert features.shape == (15, count_features(job))
    torch.testing.assert_close(
        Classifier.open(files, EngineSettings.of(config), toys.root / "cache").predict_features(
            torch.from_numpy(features)
        ),
        _log_probs(path),
    )


def test_members_are_kept_when_asked_for_and_average_to_the_prediction(toys):
    files = run_train(toys.train_job(toys.config(members=3))).files
    job = toys.score_job(files, toys.config(members=3), is_calibrated=False, keep_members=True)

    path = run_score(job).path
    ids = np.array([image.image_id for image in toys.images[75:]])[::-1][:7]
    members = read_rows(path, "members", ids).reshape(7, 3, 3).permute(1, 0, 2)

    assert read_scores(path).has_members
    assert not torch.allclose(members[0], members[1])
    torch.testing.assert_close(mean_log_probs(members), _log_probs(path).flip(0)[:7])
    torch.testing.assert_close(read_rows(path, "log_probs", ids), _log_probs(path).flip(0)[:7])


def test_rows_come_in_the_order_asked_from_any_row_group(toys, monkeypatch):
    monkeypatch.setattr("alloop.engine.score_writer.GROUP_VALUES", 12)  # 4 images of 3 classes in a row group
    monkeypatch.setattr("alloop.engine.classifier.CHUNK", 4)
    files = run_train(toys.train_job()).files
    path = run_score(toys.score_job(files)).path
    ids = np.array([image.image_id for image in toys.images[75:]])
    shuffled = np.random.default_rng(0).permutation(15)

    torch.testing.assert_close(read_rows(path, "log_probs", ids[shuffled]), _log_probs(path)[shuffled])


def test_a_column_or_an_image_that_is_not_there_is_said(toys):
    path = run_score(toys.score_job(run_train(toys.train_job()).files)).path

    with pytest.raises(ModelError, match="have no members"):
        read_rows(path, "members", np.array([1075]))
    with pytest.raises(ModelError, match="lack 1 of 2 images"):
        read_rows(path, "log_probs", np.array([1075, 3]))


@pytest.mark.parametrize("networks", [1, 2])
def test_a_trained_trunk_leaves_its_features_beside_the_scores(toys, networks):
    model = {"uncertainty": "ensemble", "members": networks} if networks > 1 else {"members": 2}
    config = toys.config(toys.trunk, TrainConfig(workers=0, epochs=2), mode="finetune", weights="none", **model)
    files = run_train(toys.train_job(config)).files
    place = toys.root / "runs" / "features.npy"
    job = toys.score_job(files, config, features_out=place, labeled=toys.images[:15])

    path = run_score(job).path
    sha256 = read_scores(path).features_sha256
    asked = np.array([toys.images[80].image_id, 7, toys.images[3].image_id])
    features, found = read_trunk_features(place, sha256, asked)
    pool, _ = read_trunk_features(place, sha256, np.array([image.image_id for image in toys.images[75:]]))

    assert found.tolist() == [True, False, True]
    assert features.shape == (2, 8)
    if networks == 1:
        torch.testing.assert_close(
            Classifier.open(files, EngineSettings.of(config), toys.root / "cache").predict_features(
                torch.from_numpy(pool)
            ),
            _log_probs(path),
        )
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="damaged"):
        read_trunk_features(place, sha256, asked)


def test_a_trunk_as_published_leaves_no_features_behind(toys):
    files = run_train(toys.train_job()).files
    place = toys.root / "runs" / "features.npy"

    scored = run_score(toys.score_job(files, features_out=place, labeled=toys.images[:15]))

    assert not place.exists()
    assert read_scores(scored.path).features_sha256 is None


KINDS = {
    "heads": {"members": 3},
    "ensemble": {"uncertainty": "ensemble", "members": 2, "heads": 2},
    "dropout": {"uncertainty": "mc-dropout", "members": 3},
    "tuned": {"mode": "finetune", "members": 3},
    "tuned-ensemble": {"mode": "finetune", "uncertainty": "ensemble", "members": 2},
}


def _trained(toys, name: str, ood_score: str = "entropy"):
    train = TrainConfig(workers=0, epochs=2 if "tuned" in name else 40, batch_size=8)
    config = toys.config(toys.trunk, train, weights="none", **KINDS[name])
    config = config.model_copy(update={"acquisition": AcquisitionConfig(ood_score=ood_score)})
    return config, run_train(toys.train_job(config)).files


@pytest.mark.parametrize("name", sorted(KINDS))
def test_predictions_are_the_numbers_in_the_score_file(toys, name: str):
    config, files = _trained(toys, name)
    path = run_score(toys.score_job(files, config)).path

    parts = list(Classifier.open(files, EngineSettings.of(config), toys.root / "cache").predict(toys.images[75:]))

    assert [image for part in parts for image in part.images] == list(toys.images[75:])
    assert torch.equal(torch.cat([part.calibrated_log_probs for part in parts]), _log_probs(path))
    np.testing.assert_array_equal(torch.cat([part.ood for part in parts]), read_scores(path).ood)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_members_are_pooled_and_the_pooled_prediction_is_calibrated(toys, name: str):
    config, files = _trained(toys, name)
    version = dataclasses.replace(load_model(files), calibration=Calibration(2.0, 0, None, None))

    batch = next(Classifier(version, EngineSettings.of(config), toys.root / "cache").predict(toys.images[75:]))

    assert batch.member_log_probs.shape == (version.n_members, len(batch.images), 3)
    assert torch.equal(batch.uncalibrated_log_probs, mean_log_probs(batch.member_log_probs))
    torch.testing.assert_close(batch.calibrated_log_probs, (batch.uncalibrated_log_probs / 2).log_softmax(dim=1))


def test_without_the_calibrator_the_pooled_prediction_is_the_answer(toys):
    config, files = _trained(toys, "heads")

    (batch,) = Classifier.open(files, EngineSettings.of(config), toys.root / "cache", is_calibrated=False).predict(
        toys.images[75:]
    )

    assert batch.calibrated_log_probs is batch.uncalibrated_log_probs


@pytest.mark.parametrize("ood_score", ["gradnorm", "odin"])
@pytest.mark.parametrize("name", sorted(set(KINDS) - {"dropout"}))
@pytest.mark.parametrize("lost", [[77, 83], range(75, 90)], ids=["some", "all"])
def test_an_image_is_predicted_or_named_with_the_reason(toys, monkeypatch, name: str, ood_score: str, lost):
    config, files = _trained(toys, name, ood_score)
    for position in lost:
        Path(toys.images[position].path).write_bytes(b"")
    monkeypatch.setattr("alloop.engine.classifier.BLOCK", 4)
    monkeypatch.setattr("alloop.engine.classifier.CHUNK", 4)

    parts = list(Classifier.open(files, EngineSettings.of(config), toys.root / "cache").predict(toys.images[75:]))

    gone = {toys.images[position].image_id for position in lost}
    assert sorted(image_id for part in parts for image_id, _ in part.failed) == sorted(gone)
    assert [image for part in parts for image in part.images] == [
        image for image in toys.images[75:] if image.image_id not in gone
    ]
    for part in parts:
        assert len(part.images) == len(part.ood) == len(part.features) == part.member_log_probs.shape[1]


def test_predicting_features_needs_no_trunk(toys, monkeypatch):
    config, files = _trained(toys, "heads")
    monkeypatch.setattr("alloop.engine.classifier.build_backbone", lambda *_: pytest.fail("built"))

    log_probs = Classifier.open(files, EngineSettings.of(config), toys.root / "cache").predict_features(
        torch.zeros(2, 8)
    )

    assert log_probs.shape == (2, 3)


def test_one_network_of_an_ensemble_is_in_memory_at_a_time(toys, monkeypatch):
    config, files = _trained(toys, "tuned-ensemble")
    monkeypatch.setattr("alloop.engine.classifier.BLOCK", 8)
    alive, read = [], model_files.read_network

    def counted(path):
        network = read(path)
        alive.append(weakref.ref(network))
        gc.collect()
        # The first network stays: it belongs to the version.
        assert sum(each() is not None for each in alive) <= 2
        return network

    monkeypatch.setattr(model_files, "read_network", counted)

    for part in Classifier.open(files, EngineSettings.of(config), toys.root / "cache").predict(toys.images[75:]):
        assert len(part.images) <= 8

    assert len(alive) == 3  # the first, and for each of two blocks the second


def test_the_weights_of_a_trained_trunk_are_hashed_once_for_many_calls(toys, monkeypatch):
    config, files = _trained(toys, "tuned")
    model, hashed = Classifier.open(files, EngineSettings.of(config), toys.root / "cache"), []
    digest = backbones.state_digest
    monkeypatch.setattr(backbones, "state_digest", lambda module: hashed.append(module) or digest(module))

    first, second = (next(model.predict(toys.images[75:77])).calibrated_log_probs for _ in range(2))

    assert torch.equal(first, second)
    assert len(hashed) == 1
