"""Training a model version in frozen mode: what comes out, what it depends on, what stops it."""

import dataclasses
import errno
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from alloop.engine import model_files
from alloop.engine.model_files import load_model
from alloop.engine.train import run_train
from alloop.errors import LabelError, ModelError, WorkspaceError
from alloop.records import ModelFiles


def test_a_trained_version_knows_the_holdout_and_describes_itself(toys, heard):
    calls, listen = heard

    result = run_train(toys.train_job(), listen)

    right = result.holdout_calibrated_log_probs.argmax(1) == np.array(toys.targets[15:75])
    assert right.mean() > 0.95
    np.testing.assert_allclose(np.exp(result.holdout_calibrated_log_probs).sum(1), 1, atol=1e-5)
    assert result.calibration.n == 60
    assert len(result.head_classes) == 4
    assert result.failed == ()
    assert ("features", 75, 75) in calls
    assert calls[-1] == ("heads", 1, 1)
    metadata = json.loads((result.files.folder / "model.json").read_text())
    assert metadata["classes"] == list(toys.config().project.classes)
    assert metadata["seed"] == 1
    assert metadata["library_versions"]["torch"]
    assert metadata["config"]["model"]["backbone"] == "pixels"
    json.dumps(result.history, allow_nan=False)


def test_the_same_job_gives_the_same_bytes_whatever_the_order_of_its_images(toys):
    job = toys.train_job()
    turned = dataclasses.replace(
        job, images=job.images[::-1], targets=job.targets[::-1], out=toys.root / "again", cache=toys.root / "fresh"
    )

    first, second = run_train(job), run_train(turned)

    assert first.files.sha256 == second.files.sha256
    for name in ("model.safetensors", "model.json"):
        assert (first.files.folder / name).read_bytes() == (second.files.folder / name).read_bytes()
    np.testing.assert_array_equal(first.holdout_calibrated_log_probs, second.holdout_calibrated_log_probs)


def test_another_seed_gives_another_model(toys):
    first = run_train(toys.train_job())
    second = run_train(toys.train_job(seed=2, out=toys.root / "second"))

    assert first.files.sha256 != second.files.sha256


def test_a_loaded_version_predicts_what_training_said(toys):
    job = toys.train_job()
    result = run_train(job)

    version = load_model(result.files)

    assert version.classes == job.classes
    assert version.calibration == result.calibration
    assert not version.trunk


def test_features_are_computed_once(toys, heard):
    run_train(toys.train_job())
    calls, listen = heard

    run_train(toys.train_job(out=toys.root / "again", seed=2), listen)

    assert not [call for call in calls if call[0] == "features"]


@pytest.mark.parametrize(("uncertainty", "members", "n_heads"), [("single", 4, 1), ("multi-head", 1, 1)])
def test_a_single_head_has_no_specialty_to_divide(toys, uncertainty, members, n_heads):
    config = toys.config(uncertainty=uncertainty, members=members)

    result = run_train(toys.train_job(config))

    assert len(result.head_classes) == n_heads
    assert set(result.head_classes[0]) == set(toys.config().project.classes)


def test_more_heads_than_classes_train_and_the_log_says_so(toys, caplog):
    with caplog.at_level(logging.INFO):
        result = run_train(toys.train_job(toys.config(members=5)))

    assert len(result.head_classes) == 5
    assert "5 heads for 3 classes" in caplog.text


def test_a_new_class_keeps_the_specialties_of_the_old_ones(toys):
    first = run_train(toys.train_job(toys.config(members=2)))
    classes = (*first_classes(toys), "dotted")

    second = run_train(
        toys.train_job(toys.config(members=2), classes=classes, head_classes=first.head_classes, out=toys.root / "b")
    )

    for before, after in zip(first.head_classes, second.head_classes, strict=True):
        assert set(before) <= set(after)
    assert sorted(name for part in second.head_classes for name in part) == sorted(classes)


def first_classes(toys) -> tuple[str, ...]:
    return toys.config().project.classes


def test_a_class_that_nobody_has_labeled_yet_keeps_a_chance(toys):
    classes = (*first_classes(toys), "dotted")

    result = run_train(toys.train_job(classes=classes))

    unlabeled = np.exp(result.holdout_calibrated_log_probs[:, 3])
    assert (unlabeled > 1e-6).all()
    assert (unlabeled < 0.25).all()


def test_one_label_of_each_of_two_classes_is_enough(toys):
    result = run_train(toys.train_job(images=toys.images[:2], targets=toys.targets[:2]))

    assert np.isfinite(result.holdout_calibrated_log_probs).all()


def test_two_classes_are_enough(toys):
    kept = [row for row in range(75) if toys.targets[row] < 2]
    images, targets = [toys.images[row] for row in kept], [toys.targets[row] for row in kept]

    result = run_train(
        toys.train_job(
            classes=first_classes(toys)[:2],
            images=tuple(images[:8]),
            targets=tuple(targets[:8]),
            holdout=tuple(images[8:]),
            holdout_targets=tuple(targets[8:]),
        )
    )

    assert result.holdout_calibrated_log_probs.shape == (42, 2)
    assert "too few" in result.calibration.note


def test_without_a_holdout_the_temperature_is_one(toys):
    result = run_train(toys.train_job(holdout=(), holdout_targets=()))

    assert result.holdout_calibrated_log_probs.shape == (0, 3)
    assert result.calibration.temperature == 1
    assert result.calibration.n == 0


@pytest.mark.parametrize(
    ("targets", "message"),
    [((1, 1, 1), "at least two classes, but there are 3 of horizontal"), ((), "but there are none")],
)
def test_labels_of_fewer_than_two_classes_are_refused_with_their_counts(toys, targets, message):
    with pytest.raises(LabelError, match=message):
        run_train(toys.train_job(images=toys.images[: len(targets)], targets=targets))

    assert not (toys.root / "runs").exists()


def test_a_target_that_is_no_class_is_refused(toys):
    with pytest.raises(LabelError, match="Target 3 is not a class"):
        run_train(toys.train_job(images=toys.images[:2], targets=(0, 3)))


def test_images_that_cannot_be_read_are_named_and_take_no_part(toys):
    Path(toys.images[3].path).unlink()
    Path(toys.images[20].path).write_bytes(b"not an image")

    result = run_train(toys.train_job())

    reasons = dict(result.failed)
    assert set(reasons) == {toys.images[3].image_id, toys.images[20].image_id}
    assert "does not exist any more" in reasons[toys.images[3].image_id]
    assert result.holdout_calibrated_log_probs.shape == (59, 3)
    assert result.calibration.n == 59
    right = result.holdout_calibrated_log_probs.argmax(1) == np.delete(toys.targets[15:75], 5)
    assert right.mean() > 0.95


def test_a_full_disk_leaves_nothing_half_written_and_the_old_model_in_place(toys, monkeypatch):
    before = run_train(toys.train_job())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_files, "write_json", full)

    with pytest.raises(WorkspaceError, match="disk is full"):
        run_train(toys.train_job(seed=2))

    assert [path.name for path in before.files.folder.parent.iterdir()] == ["model"]
    load_model(before.files)


def test_a_disk_that_fills_up_while_weights_are_written_is_said_to_be_full(toys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise model_files.safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model_files.safetensors.torch, "save_file", full)

    with pytest.raises(WorkspaceError, match="disk is full"):
        run_train(toys.train_job())

    assert list((toys.root / "runs").iterdir()) == []


def test_training_again_replaces_the_version_as_a_whole(toys):
    run_train(toys.train_job())

    second = run_train(toys.train_job(seed=2))

    assert load_model(second.files).metadata["seed"] == 2
    assert [path.name for path in (toys.root / "runs").iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_version_is_refused_with_the_way_out(toys, name, damage):
    files = run_train(toys.train_job()).files
    path = files.folder / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()

    with pytest.raises(ModelError) as caught:
        load_model(files)

    assert "alloop train" in caught.value.hint


def test_a_version_under_another_checksum_is_refused(toys):
    files = run_train(toys.train_job()).files

    with pytest.raises(ModelError, match="checksum does not match"):
        load_model(ModelFiles(files.folder, "0" * 64))


@pytest.mark.parametrize(("number", "reason"), [(1, "too old"), (99, "a newer alloop")])
def test_a_version_in_another_format_is_refused(tmp_path, number, reason):
    (tmp_path / "model.json").write_text(f'{{"format": {number}}}')
    checksum = hashlib.sha256((tmp_path / "model.json").read_bytes()).hexdigest()

    with pytest.raises(ModelError, match=reason):
        load_model(ModelFiles(tmp_path, checksum))


def test_a_damaged_feature_cache_is_computed_anew(toys):
    first = run_train(toys.train_job())
    for shard in (toys.root / "cache").rglob("*.npy"):
        shard.write_bytes(shard.read_bytes()[:-40])

    second = run_train(toys.train_job(out=toys.root / "again"))

    assert second.files.sha256 == first.files.sha256


def test_settings_that_may_hold_secrets_are_not_in_a_model_file(toys):
    config = toys.config()
    secret = config.database.model_copy(update={"url": "postgresql://me:hunter2@host/db"})

    files = run_train(toys.train_job(config.model_copy(update={"database": secret}))).files

    assert "hunter2" not in (files.folder / "model.json").read_text()
