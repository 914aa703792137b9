"""What strategies look at besides scores is what training and scoring saw."""

import numpy as np
import pytest
import torch

from alloop.config.schema import TrainConfig
from alloop.engine.evidence import load_head
from alloop.engine.features import count_features, run_features
from alloop.engine.jobs import FeatureJob
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs, read_rows, read_scores
from alloop.engine.train import run_train
from alloop.engine.trunk_file import read_trunk_features
from alloop.errors import ModelError
from alloop.predictive import mean_log_probs


def _log_probs(path):
    return torch.cat([rows for _, rows in read_log_probs(path)])


@pytest.mark.parametrize("model", [{"members": 2}, {"uncertainty": "ensemble", "members": 2, "heads": 3}])
def test_the_head_says_of_features_what_the_scores_say(toys, model):
    config = toys.config(**model)
    files = run_train(toys.train_job(config)).files
    path = run_score(toys.score_job(files, config)).path
    job = FeatureJob(config, toys.images[75:], toys.root / "cache")

    features = run_features(job).features

    assert features.shape == (15, count_features(job))
    torch.testing.assert_close(load_head(config, files)(torch.from_numpy(features)), _log_probs(path))


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
    monkeypatch.setattr("alloop.engine.score_file.GROUP_VALUES", 12)  # 4 images of 3 classes in a row group
    monkeypatch.setattr("alloop.engine.score.CHUNK", 4)
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
        torch.testing.assert_close(load_head(config, files)(torch.from_numpy(pool)), _log_probs(path))
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="damaged"):
        read_trunk_features(place, sha256, asked)


def test_a_trunk_as_published_leaves_no_features_behind(toys):
    files = run_train(toys.train_job()).files
    place = toys.root / "runs" / "features.npy"

    scored = run_score(toys.score_job(files, features_out=place, labeled=toys.images[:15]))

    assert not place.exists()
    assert read_scores(scored.path).features_sha256 is None
