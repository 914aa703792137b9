"""Ensembles and dropout: what their members are, that they resume, that memory holds one network."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from alloop.config.schema import TrainConfig
from alloop.engine import members as members_of
from alloop.engine import train as training
from alloop.engine.build import build_backbone, build_hardware
from alloop.engine.features import ensure_features
from alloop.engine.head_passes import HeadPasses
from alloop.engine.model_files import load_model
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs, read_scores
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.errors import ModelError
from alloop.models.heads import MultiHead
from alloop.progress import silent


def _finetune(toys, **model: object):
    train = TrainConfig(workers=0, epochs=1, batch_size=8, unlabeled="on")
    return toys.config(toys.trunk, train, mode="finetune", weights="none", **model)


def _log_probs(result) -> torch.Tensor:
    return torch.cat([rows for _, rows in read_log_probs(result.path)])


@pytest.mark.parametrize(("heads", "n_heads"), [(1, 1), (2, 2)])
def test_an_ensemble_predicts_the_mean_probability_of_its_networks(toys, heads, n_heads):
    config = toys.config(uncertainty="ensemble", members=3, heads=heads, backbone="pixels")
    result = run_train(toys.train_job(config, holdout=(), holdout_targets=()))  # temperature 1

    version = load_model(result.files)
    scored = _log_probs(run_score(toys.score_job(result.files, config)))

    assert len(version.files) == 3
    assert len(result.head_classes) == 3 * n_heads
    assert [version.load_network(number).heads.n_heads for number in range(3)] == [n_heads] * 3
    alone = []
    for number in range(3):
        stored = {**version.metadata["config"], "model": {**version.metadata["config"]["model"], "members": 1}}
        part = dataclasses.replace(
            version,
            network=version.load_network(number),
            files=version.files[:1],
            metadata={**version.metadata, "config": stored},
        )
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patch:
            patch.setattr("alloop.engine.classifier.load_model", lambda _, part=part: part)
            job = toys.score_job(result.files, config, out=toys.root / f"{number}.parquet")
            alone.append(_log_probs(run_score(job)).exp())
    torch.testing.assert_close(scored.exp(), torch.stack(alone).mean(0), atol=1e-5, rtol=1e-4)


def test_the_first_network_of_an_ensemble_is_what_a_single_one_would_be(toys):
    single = load_model(run_train(toys.train_job(toys.config(uncertainty="single"))).files)
    config = toys.config(uncertainty="ensemble", members=2)
    version = load_model(run_train(toys.train_job(config, out=toys.root / "two")).files)

    assert torch.equal(single.heads.weight, version.heads.weight)
    assert not torch.equal(single.heads.weight, version.load_network(1).heads.weight)


def test_fine_tuned_networks_have_trunks_of_their_own_and_score_one_at_a_time(toys, monkeypatch):
    config = _finetune(toys, uncertainty="ensemble", members=2)
    result = run_train(toys.train_job(config))
    version = load_model(result.files)
    whole = _log_probs(run_score(toys.score_job(result.files, config)))
    monkeypatch.setattr("alloop.engine.classifier.BLOCK", 4)

    pieces = _log_probs(run_score(toys.score_job(result.files, config, out=toys.root / "pieces.parquet")))

    first, second = (version.load_network(number).trunk["0.weight"] for number in range(2))
    assert not torch.equal(first, second)
    torch.testing.assert_close(whole, pieces)
    again = _log_probs(run_score(toys.score_job(result.files, config, images=toys.images[15:75])))
    np.testing.assert_array_equal(again.argmax(1), result.holdout_calibrated_log_probs.argmax(1))


def test_an_image_that_an_ensemble_cannot_read_is_named_once(toys):
    config = _finetune(toys, uncertainty="ensemble", members=2)
    result = run_train(toys.train_job(config))
    (toys.root / "images" / "80.png").write_bytes(b"")

    scored = run_score(toys.score_job(result.files, config))

    assert [image_id for image_id, _ in scored.failed] == [toys.images[80].image_id]
    assert scored.n_images == 14


def test_a_killed_ensemble_goes_on_with_the_next_network_to_the_same_bytes(toys, monkeypatch):
    config = toys.config(uncertainty="ensemble", members=3)
    whole = run_train(toys.train_job(config, out=toys.root / "whole"))
    fit, numbers = training._fit, []

    def killed(job, number, *rest):
        numbers.append(number)
        if numbers == [0, 1, 2]:
            raise KeyboardInterrupt
        return fit(job, number, *rest)

    monkeypatch.setattr(training, "_fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run_train(toys.train_job(config))

    resumed = run_train(toys.train_job(config))

    assert numbers == [0, 1, 2, 2]
    assert resumed.files.sha256 == whole.files.sha256
    np.testing.assert_array_equal(resumed.holdout_calibrated_log_probs, whole.holdout_calibrated_log_probs)
    assert [path.name for path in (toys.root / "runs").iterdir()] == ["model"]


def test_what_another_job_left_behind_is_not_taken_over(toys, monkeypatch):
    config = toys.config(uncertainty="ensemble", members=2)
    monkeypatch.setattr(training, "save_version", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_train(toys.train_job(config))
    monkeypatch.undo()

    second = run_train(toys.train_job(config, seed=2))

    fresh = run_train(toys.train_job(config, seed=2, out=toys.root / "fresh"))
    assert second.files.sha256 == fresh.files.sha256


def test_a_fine_tuned_network_of_another_pool_is_not_taken_over(toys):
    config = _finetune(toys, uncertainty="ensemble", members=2)
    job = dataclasses.replace(toys.train_job(config), pool=toys.images[:-1])
    kept = training._fit(job, 0, ((0, 1, 2),), build_hardware(job.settings, None), None, silent)
    members_of.Members(job, 2, {}).fit(0, lambda _: kept)
    same = dataclasses.replace(job, pool=toys.images[-2::-1])
    other = dataclasses.replace(job, pool=toys.images)

    assert members_of.Members(same, 2, {}).fit(0, lambda _: pytest.fail("it was there")).history == kept.history

    again = dataclasses.replace(kept, history={"epochs": []})
    assert members_of.Members(other, 2, {}).fit(0, lambda _: again) is again


def test_a_network_that_diverged_fails_the_ensemble_by_its_number(toys, monkeypatch):
    fit = training._fit

    def diverged(job, number, *rest):
        fitted = fit(job, number, *rest)
        if number == 1:
            with torch.no_grad():
                fitted.network.heads.weight.fill_(torch.nan)
        return fitted

    monkeypatch.setattr(training, "_fit", diverged)

    with pytest.raises(ModelError, match="member 1 has weights or predictions that are not finite"):
        run_train(toys.train_job(toys.config(uncertainty="ensemble", members=2)))


@pytest.mark.parametrize("damage", [b"", b"rubbish"])
def test_a_damaged_network_of_an_ensemble_is_found_before_use(toys, damage):
    files = run_train(toys.train_job(toys.config(uncertainty="ensemble", members=2))).files
    (files.folder / "model-1.safetensors").write_bytes(damage)

    with pytest.raises(ModelError, match="damaged"):
        load_model(files)


@pytest.mark.parametrize("consistent_masks", [True, False])
def test_dropout_passes_differ_and_the_same_job_scores_the_same(toys, consistent_masks):
    config = toys.config(
        train=TrainConfig(workers=0, epochs=200),
        uncertainty="mc-dropout",
        members=6,
        dropout=0.5,
        consistent_masks=consistent_masks,
    )
    result = run_train(toys.train_job(config))

    first, second = (run_score(toys.score_job(result.files, config, out=toys.root / f"{n}.parquet")) for n in "ab")

    assert first.sha256 == second.sha256
    assert (result.holdout_calibrated_log_probs.argmax(1) == np.array(toys.targets[15:75])).mean() > 0.9
    heads = load_model(result.files).heads
    logits = HeadPasses(EngineSettings.of(config), 1).logits(heads, torch.randn(5, heads.weight.shape[2]))
    assert logits.shape == (6, 5, 3)
    assert (logits.std(dim=0) > 0).all()


def test_one_mask_for_the_whole_pool_does_not_depend_on_who_is_in_it(toys):
    config = toys.config(uncertainty="mc-dropout", members=4, consistent_masks=True)
    heads = MultiHead(8, 1, 3, torch.Generator().manual_seed(0))
    features = torch.randn(10, 8, generator=torch.Generator().manual_seed(1))

    whole = HeadPasses(EngineSettings.of(config), 3).logits(heads, features)
    part = HeadPasses(EngineSettings.of(config), 3).logits(heads, features[4:7])

    torch.testing.assert_close(whole[:, 4:7], part)


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_an_images_masks_do_not_depend_on_its_batch_or_place(toys, mode):
    train = TrainConfig(workers=0, epochs=2, batch_size=16)
    config = toys.config(toys.trunk, train, weights="none", mode=mode, uncertainty="mc-dropout", members=4)
    files = run_train(toys.train_job(config)).files
    found = []
    for number, (size, images) in enumerate([(16, toys.images[75:]), (4, toys.images[:74:-1]), (3, toys.images[80:])]):
        other = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": size})})
        job = toys.score_job(files, other, images=images, out=toys.root / f"{number}.parquet", keep_members=True)
        run_score(job)
        table = pq.read_table(job.out)
        found.append(dict(zip(table["image_id"].to_pylist(), table["members"].to_pylist(), strict=True)))

    for rows in found[1:]:
        for image_id, row in rows.items():
            np.testing.assert_allclose(row, found[0][image_id], atol=1e-5)
    # Passes differ for every image. A class that an image is surely not of may move less than others, by chance.
    passes = np.array(list(found[0].values())).reshape(-1, 4, 3)
    assert (passes.std(axis=1).max(axis=1) > 1e-4).all()


def test_a_trunk_is_fine_tuned_under_dropout(toys):
    config = _finetune(toys, uncertainty="mc-dropout", members=3, heads=2)

    result = run_train(toys.train_job(config))

    assert np.isfinite(result.holdout_calibrated_log_probs).all()
    assert load_model(result.files).heads.n_heads == 2


def test_members_left_on_disk_come_back_as_they_were(toys):
    config = toys.config(uncertainty="ensemble", members=2)
    job = toys.train_job(config)
    kept = members_of.Members(job, 2, {})
    fitted = kept.fit(0, lambda number: training._fit(job, number, ((0, 1, 2),), *_here(job)))

    again = members_of.Members(job, 2, {}).fit(0, lambda _: pytest.fail("it was there"))

    torch.testing.assert_close(again.holdout_member_log_probs, fitted.holdout_member_log_probs, rtol=0, atol=0)
    assert (again.holdout_ids, again.history, again.failed) == (fitted.holdout_ids, fitted.history, fitted.failed)


@pytest.mark.parametrize("left", [b"", b"{half", b"[]", b"{}", b"null", b"\xff\xfe"])
def test_a_member_whose_record_is_damaged_is_trained_again(toys, left):
    job = toys.train_job(toys.config(uncertainty="ensemble", members=2))
    kept = members_of.Members(job, 2, {})
    fitted = kept.fit(0, lambda number: training._fit(job, number, ((0, 1, 2),), *_here(job)))
    next(kept._folder.glob("member-0.json")).write_bytes(left)

    assert members_of.Members(job, 2, {}).fit(0, lambda _: fitted) is fitted


def test_a_member_whose_weights_are_gone_is_trained_again(toys):
    job = toys.train_job(toys.config(uncertainty="ensemble", members=2))
    kept = members_of.Members(job, 2, {})
    fitted = kept.fit(0, lambda number: training._fit(job, number, ((0, 1, 2),), *_here(job)))
    next(kept._folder.glob("*.safetensors")).unlink()

    assert members_of.Members(job, 2, {}).fit(0, lambda _: fitted) is fitted


def _here(job):
    hardware = build_hardware(job.settings, None)
    backbone = build_backbone(job.settings)
    return hardware, lambda: training._material(job, job.seed, backbone, hardware, None, silent), silent


def test_scores_hold_every_uncertainty_that_the_members_give(toys):
    """Checked against definitions on probabilities, in float64, of the heads as they are on disk."""
    config = toys.config(members=3)
    result = run_train(toys.train_job(config, holdout=(), holdout_targets=()))  # temperature 1
    version = load_model(result.files)
    backbone = build_backbone(EngineSettings.of(config))
    cache, _ = ensure_features(
        toys.images[75:], backbone, toys.root / "cache", build_hardware(EngineSettings.of(config), None)
    )
    rows = torch.from_numpy(cache.take([image.sha256 for image in toys.images[75:]]))
    p = version.heads(rows).double().softmax(-1)
    mean = p.mean(0)
    best = mean.sort(-1).values
    votes = torch.stack([(p.argmax(-1) == k).sum(0) for k in range(3)]).amax(0)
    inner = -(p * p.log()).sum(-1).mean(0)
    expected = {
        "entropy": -(mean * mean.log()).sum(-1),
        "expected-entropy": inner,
        "mutual-information": -(mean * mean.log()).sum(-1) - inner,
        "least-confidence": 1 - best[:, -1],
        "margin": best[:, -2] - best[:, -1],
        "variation-ratio": 1 - votes / 3,
    }

    scores = read_scores(run_score(toys.score_job(result.files, config)).path)

    assert set(scores.uncertainty) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(scores.uncertainty[name], values, atol=1e-5, err_msg=name)


def test_a_single_member_disagrees_with_nobody(toys):
    config = toys.config(uncertainty="single")
    scores = read_scores(run_score(toys.score_job(run_train(toys.train_job(config)).files, config)).path)

    assert set(scores.uncertainty) == {"entropy", "expected-entropy", "least-confidence", "margin"}
