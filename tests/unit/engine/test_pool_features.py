"""Heads on smoothed features: when there are any, that every path predicts the same, and that graphs come back."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from alloop.calibration.weighing import weigh
from alloop.composition import LOSSES
from alloop.config.schema import TrainConfig
from alloop.engine import pool_features
from alloop.engine import train as training
from alloop.engine.classifier import Classifier
from alloop.engine.features import run_features
from alloop.engine.jobs import FeatureJob
from alloop.engine.model_files import load_model
from alloop.engine.pool_features import why_off
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs, read_rows
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.errors import ModelError, WorkspaceError
from alloop.predictive import mean_log_probs
from alloop.smoothing.smoothing import FEWEST


def _log_probs(path):
    return torch.cat([rows for _, rows in read_log_probs(path)])


def _job(toys, config=None, **changes):
    """15 training images, 60 of the holdout, and a pool of the first 80 images: the last ten are no nodes."""
    return toys.train_job(config, **{"pool": toys.images[:80], **changes})


def _graphs(toys):
    return sorted((toys.root / "cache" / "pool_features").glob("*.safetensors"))


def test_an_image_outside_the_graph_gets_what_its_features_get(toys):
    trained = run_train(_job(toys))
    path = run_score(toys.score_job(trained.files, images=toys.images[80:])).path
    job = FeatureJob(EngineSettings.of(toys.config()), toys.images[80:], toys.root / "cache")
    model = Classifier.open(trained.files, EngineSettings.of(toys.config()), toys.root / "cache")

    predicted = model.predict_features(torch.from_numpy(run_features(job).features))

    torch.testing.assert_close(predicted, _log_probs(path))


def test_the_prediction_weighs_both_kinds_of_heads_on_their_own_features(toys):
    trained = run_train(_job(toys))
    version = load_model(trained.files)
    images = [*toys.images[70:75], *toys.images[85:]]
    rows = torch.from_numpy(
        run_features(FeatureJob(EngineSettings.of(toys.config()), images, toys.root / "cache")).features
    )
    model = Classifier.open(trained.files, EngineSettings.of(toys.config()), toys.root / "cache")

    smoothed = model.smoothing.transform([image.key for image in images], rows)
    both = [
        mean_log_probs(heads(features).log_softmax(-1))
        for heads, features in ((version.heads, rows), (version.network.smoothed, smoothed))
    ]
    expected = weigh(torch.stack(both, dim=1), *trained.calibration.weights).float()

    found = torch.cat([part.calibrated_log_probs for part in model.predict(images)])
    torch.testing.assert_close(found, expected)


def test_scores_without_the_calibrator_keep_both_predictions(toys):
    trained = run_train(_job(toys))
    job = toys.score_job(trained.files, images=toys.images[15:75], is_calibrated=False)
    path = run_score(job).path

    both = _log_probs(path)

    assert both.shape == (60, 2, 3)
    np.testing.assert_allclose(both, trained.holdout_pooled_log_probs, atol=1e-5)
    ids = np.array([image.image_id for image in job.images])
    torch.testing.assert_close(read_rows(path, "log_probs", ids), both[:, 1])


@pytest.mark.parametrize(
    "model",
    [
        {"members": 3},
        {"uncertainty": "ensemble", "members": 2, "heads": 2},
        {"uncertainty": "mc-dropout", "members": 4},
        {"uncertainty": "mc-dropout", "members": 4, "consistent_masks": True},
    ],
)
def test_training_and_scoring_say_the_same_of_the_holdout(toys, model):
    _check_that_training_and_scoring_agree(toys, toys.config(**model))


@pytest.mark.parametrize("train", [*({"loss": loss} for loss in LOSSES), {"mixing": "mixup"}], ids=str)
def test_every_loss_and_mixing_trains_both_kinds_of_heads(toys, train, monkeypatch):
    whole = training.build_head_recipe
    monkeypatch.setattr(
        training, "build_head_recipe", lambda *args, **given: dataclasses.replace(whole(*args, **given), updates=20)
    )
    _check_that_training_and_scoring_agree(toys, toys.config(train=TrainConfig(workers=0, **train), members=2))


def _check_that_training_and_scoring_agree(toys, config):
    trained = run_train(_job(toys, config))
    job = toys.score_job(trained.files, config, images=toys.images[15:75], is_calibrated=False, keep_members=True)

    path = run_score(job).path

    np.testing.assert_allclose(_log_probs(path), trained.holdout_pooled_log_probs, atol=1e-5)
    members = read_rows(path, "members", np.array([image.image_id for image in job.images]))
    assert members.shape == (60, config.model.n_members * 3)


def test_members_are_weighed_like_the_model(toys):
    config = toys.config(members=1)
    trained = run_train(_job(toys, config))
    path = run_score(toys.score_job(trained.files, config, keep_members=True)).path
    ids = np.array([image.image_id for image in toys.images[75:]])

    a, b = trained.calibration.weights
    member, model = read_rows(path, "members", ids), read_rows(path, "log_probs", ids)

    # With one member, the model's prediction is the member's, sharpened by a + b.
    torch.testing.assert_close(((a + b) * member).log_softmax(-1), model)


def test_without_pool_features_the_model_is_that_of_raw_heads(toys):
    off = toys.config(pool_features="off")
    one, other = run_train(_job(toys, off)), run_train(toys.train_job(out=toys.root / "runs" / "other"))

    assert torch.equal(load_model(one.files).heads.weight, load_model(other.files).heads.weight)
    assert (one.holdout_calibrated_log_probs == other.holdout_calibrated_log_probs).all()
    assert one.calibration == other.calibration
    assert one.history["pool_features"] == {"is_on": False, "reason": '[model] pool_features = "off"'}
    assert not _graphs(toys)


def test_the_order_of_the_pool_changes_no_byte(toys):
    one = run_train(_job(toys))
    _graphs(toys)[0].unlink()
    other = run_train(_job(toys, pool=toys.images[79::-1]))
    assert one.files.sha256 == other.files.sha256


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backbone": "resnet18", "weights": "none"}, "random weights"),
        ({"backbone": "timm:resnet18", "weights": "none"}, "random weights"),
        ({"backbone": "toy_trunk:tiny", "weights": "none", "mode": "finetune"}, "trained with the heads"),
        ({"pool_features": "off"}, 'pool_features = "off"'),
        ({"backbone": "toy_trunk:tiny", "weights": "none"}, ""),
        ({"backbone": "features:12", "weights": "none"}, ""),
        ({}, ""),
        ({"backbone": "resnet18"}, ""),
    ],
)
def test_smoothing_is_left_out_where_it_cannot_help(toys, changes, reason):
    found = why_off(EngineSettings.of(toys.config(**changes)))
    assert reason in found
    assert bool(reason) == bool(found)


def test_a_pool_that_is_too_small_says_so(toys):
    trained = run_train(_job(toys, pool=toys.images[: FEWEST - 1]))
    about = trained.history["pool_features"]
    assert about == {"is_on": False, "reason": f"the pool has 29 images, and a graph needs at least {FEWEST}"}
    assert trained.calibration.weights is None


def test_images_that_cannot_be_read_are_no_nodes(toys):
    gone = toys.images[78]
    (toys.root / "images" / "78.png").write_bytes(b"no image any more")
    trained = run_train(_job(toys))
    assert gone.key not in pool_features._read_nodes(trained.files.folder / pool_features.NODES)
    assert trained.history["pool_features"]["n_nodes"] == 79


@pytest.mark.parametrize("grown", [88, 89])
def test_the_graph_stays_until_the_pool_has_grown_by_a_tenth(toys, grown):
    first = run_train(_job(toys))
    again = _job(toys, pool=toys.images[:grown], pool_before=first.files.folder, out=toys.root / "runs" / "next")

    second = run_train(again)

    before, after = first.history["pool_features"], second.history["pool_features"]
    assert before["n_nodes"] == 80
    assert (after == before) is (grown == 88)
    assert after["n_nodes"] == (80 if grown == 88 else 89)


def test_another_pool_or_another_trunk_gets_a_graph_of_its_own(toys):
    first = run_train(_job(toys))
    out = {"pool_before": first.files.folder, "out": toys.root / "runs" / "next"}

    other_pool = run_train(_job(toys, pool=toys.images[20:], **out)).history["pool_features"]
    trunk = toys.config(toys.trunk, weights="none")
    other_trunk = run_train(_job(toys, trunk, **out)).history["pool_features"]

    assert len({first.history["pool_features"]["key"], other_pool["key"], other_trunk["key"]}) == 3


@pytest.mark.parametrize("damage", ["gone", "cut", "record", "flipped"])
def test_a_damaged_graph_is_fitted_again_to_the_same_images(toys, damage, caplog):
    trained = run_train(_job(toys))
    before = _log_probs(run_score(toys.score_job(trained.files)).path)
    (path,) = _graphs(toys)
    data = path.read_bytes()
    pool_features._last.clear()  # as in another process
    if damage == "gone":
        path.unlink()
    elif damage == "record":
        path.with_suffix(".json").write_text("{")
    else:
        path.write_bytes(data[:-10] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))

    after = _log_probs(run_score(toys.score_job(trained.files)).path)

    assert torch.equal(before, after)
    assert path.read_bytes() == data
    assert ("fitted again" in caplog.text) is (damage != "gone")


def test_a_deleted_cache_comes_back_from_the_images(toys):
    trained = run_train(_job(toys))
    before = _log_probs(run_score(toys.score_job(trained.files)).path)
    shutil.rmtree(toys.root / "cache")
    pool_features._last.clear()

    after = _log_probs(run_score(toys.score_job(trained.files, pool=toys.images[:80])).path)

    assert torch.equal(before, after)
    assert len(_graphs(toys)) == 1


def test_a_cache_that_cannot_be_written_leaves_the_graph_in_memory(toys, monkeypatch, caplog):
    def full(*_):
        raise WorkspaceError("The disk is full.")

    monkeypatch.setattr(pool_features, "write_bytes", full)
    trained = run_train(_job(toys))
    assert trained.history["pool_features"]["is_on"]
    assert "kept in memory only: The disk is full." in caplog.text
    assert not _graphs(toys)


def test_a_graph_that_cannot_come_back_names_the_way_out(toys):
    trained = run_train(_job(toys))
    _graphs(toys)[0].unlink()
    for shard in (toys.root / "cache" / "features").rglob("*.npy"):
        shard.unlink()

    with pytest.raises(ModelError, match=r"needs a graph of the pool.*so are features or images") as error:
        run_score(toys.score_job(trained.files))
    assert "alloop train" in error.value.hint


def test_a_graph_that_is_made_in_another_way_is_refused(toys, monkeypatch):
    trained = run_train(_job(toys))
    monkeypatch.setattr(pool_features, "VERSION", pool_features.VERSION + 1)

    with pytest.raises(
        ModelError, match="needs a graph of version 1, but this alloop makes graphs of version 2"
    ) as error:
        run_score(toys.score_job(trained.files))
    assert "alloop train" in error.value.hint
    # The next round trains with a graph of its own.
    after = run_train(_job(toys, pool_before=trained.files.folder, out=toys.root / "runs" / "next"))
    assert after.history["pool_features"]["version"] == 2


def test_the_list_of_nodes_is_covered_by_the_checksum_of_the_model(toys):
    trained = run_train(_job(toys))
    path = trained.files.folder / pool_features.NODES
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="damaged"):
        load_model(trained.files)


def test_a_model_of_the_format_before_is_still_read(toys):
    trained = run_train(toys.train_job())
    place = trained.files.folder / "model.json"
    data = json.loads(place.read_bytes())
    del data["others"], data["pool_features"], data["calibration"]["weights"]
    place.write_text(json.dumps(data | {"format": 2}))
    files = dataclasses.replace(trained.files, sha256=pool_features.sha256_of(place))

    assert len(_log_probs(run_score(toys.score_job(files)).path)) == 15
    # Its folder is no reason to fail for the next round either.
    run_train(_job(toys, pool_before=files.folder, out=toys.root / "runs" / "next"))


def test_a_test_set_decides_nothing_about_the_weights(toys):
    wrong = tuple((target + 1) % 3 for target in toys.targets[60:75])
    images = {"images": toys.images[:60], "targets": toys.targets[:60], "holdout": toys.images[60:75], "is_test": True}

    one = run_train(_job(toys, holdout_targets=toys.targets[60:75], pool=toys.images[:60], **images))
    other = run_train(_job(toys, holdout_targets=wrong, pool=toys.images[:60], **images))

    assert one.calibration == other.calibration
    assert min(one.calibration.weights) >= 0
    assert one.calibration.note == (
        "Fitted by 5-fold cross-validation on 60 training labels: the holdout is a test set."
    )


def test_an_ensemble_that_was_stopped_goes_on_only_with_the_same_graph(toys, monkeypatch):
    config = toys.config(uncertainty="ensemble", members=2)
    job = _job(toys, config)
    whole = run_train(job)
    numbers: list[int] = []
    fit = training._fit

    def stopped(job, number, *rest):
        numbers.append(number)
        if number == 1 and len(numbers) == 2:
            raise KeyboardInterrupt
        return fit(job, number, *rest)

    monkeypatch.setattr(training, "_fit", stopped)
    other = dataclasses.replace(job, out=toys.root / "runs" / "other")
    with pytest.raises(KeyboardInterrupt):
        run_train(other)
    assert run_train(other).files.sha256 == whole.files.sha256
    assert numbers == [0, 1, 1]


def test_odd_images_are_judged_by_raw_features(toys):
    off = toys.config(pool_features="off")
    on, raw = run_train(_job(toys)), run_train(_job(toys, off, out=toys.root / "runs" / "raw"))
    settings = {"on": toys.config(), "off": off}
    for score in ("max-logit", "energy", "gradnorm"):
        found = []
        for name, trained in (("on", on), ("off", raw)):
            model = Classifier.open(
                trained.files,
                dataclasses.replace(EngineSettings.of(settings[name]), ood_score=score),
                toys.root / "cache",
            )
            found.append(torch.cat([part.ood for part in model.predict(toys.images[75:])]))
        torch.testing.assert_close(found[0], found[1])
