"""Fine-tuning: the trunk learns, the labels are split fairly, and what is kept is the best."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from alloop.composition import LOSSES
from alloop.config.schema import ModelConfig, TrainConfig
from alloop.engine import finetune as finetuning
from alloop.engine import train as training
from alloop.engine.batch_norm import settle_statistics
from alloop.engine.build import build_backbone, build_finetune_recipe, build_hardware, build_loss, search_paths
from alloop.engine.features import load_batches
from alloop.engine.finetune import Labeled, split_stratified
from alloop.engine.model_files import load_model
from alloop.engine.objective import Objective
from alloop.engine.score import run_score
from alloop.engine.score_file import read_scores
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.errors import DeviceError, ModelError
from alloop.models.backbones import Backbone
from alloop.models.heads import MultiHead
from alloop.pool import dataset, held
from alloop.progress import silent


def _config(toys, **train: object):
    settings = {"workers": 0, "epochs": 6, "batch_size": 16, "learning_rate": 0.05, **train}
    return toys.config(toys.trunk, TrainConfig(**settings), mode="finetune", weights="none")


def _job(toys, **train: object):
    rows = slice(0, 45)
    return toys.train_job(
        _config(toys, **train),
        images=toys.images[rows],
        targets=toys.targets[rows],
        holdout=toys.images[45:75],
        holdout_targets=toys.targets[45:75],
    )


def test_fine_tuning_changes_the_trunk_and_its_version_scores_without_a_feature_cache(toys, heard):
    calls, listen = heard

    result = run_train(_job(toys), listen)

    version = load_model(result.files)
    assert version.trunk
    assert result.history["best_epoch"] > 0
    assert [call[0] for call in calls].count("epochs") == len(result.history["epochs"])
    assert result.holdout_calibrated_log_probs.shape == (30, 3)
    scored = run_score(toys.score_job(result.files, _config(toys)))
    predicted = read_scores(scored.path).predicted
    truth = [toys.config().project.classes[target] for target in toys.targets[75:]]
    assert np.mean([one == other for one, other in zip(predicted, truth, strict=True)]) > 0.5


def test_a_fine_tuned_model_refuses_another_image_size(toys):
    files = run_train(_job(toys, epochs=1)).files
    config = _config(toys)
    other = config.model_copy(update={"model": config.model.model_copy(update={"image_size": 24})})

    with pytest.raises(ModelError, match="another image size"):
        run_score(toys.score_job(files, other))


def test_fine_tuning_starts_from_heads_that_have_not_seen_what_early_stopping_watches(toys, monkeypatch):
    parts = []

    def listen(setup, train, validation, *rest):
        parts.append((train, validation))
        return finetuning.finetune(setup, train, validation, *rest)

    monkeypatch.setattr(training, "finetune", listen)
    job = _job(toys, epochs=1, weight_decay=0.5)
    frozen = toys.config(toys.trunk, TrainConfig(workers=0), mode="frozen", weights="none")

    tuned = run_train(job)
    ((train, validation),) = parts
    part = {"images": tuple(train.images), "targets": tuple(train.targets.tolist())}
    probed = run_train(dataclasses.replace(job, settings=EngineSettings.of(frozen), out=toys.root / "frozen", **part))

    assert {*train.images} | {*validation.images} == {*job.images}
    assert not {*train.images} & {*validation.images}
    assert len(validation) > 0
    assert tuned.history["loss_after"] == probed.history["loss_after"]
    assert tuned.history["evaluations"] > 20


def test_the_same_job_gives_the_same_bytes(toys):
    first = run_train(_job(toys))
    second = run_train(dataclasses.replace(_job(toys), out=toys.root / "again", cache=toys.root / "fresh"))

    assert first.files.sha256 == second.files.sha256


def test_a_model_depends_neither_on_processes_nor_on_room_in_memory(toys, monkeypatch):
    here = run_train(_pooled(toys, epochs=2))
    monkeypatch.setattr(held, "FEW", 1)
    by_processes = run_train(dataclasses.replace(_pooled(toys, epochs=2, workers=2), out=toys.root / "processes"))
    monkeypatch.setattr(held, "usable_memory", lambda: 0)
    without_room = run_train(dataclasses.replace(_pooled(toys, epochs=2), out=toys.root / "room"))

    trunks = [load_model(result.files).trunk for result in (here, by_processes, without_room)]

    for other in trunks[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in trunks[0].items())


@pytest.mark.parametrize("n_unlabeled", [0, 15])
def test_fine_tuning_decodes_an_image_once(toys, monkeypatch, n_unlabeled):
    unlabeled = toys.images[75 : 75 + n_unlabeled]  # fewer than the training part, so that each is drawn
    job = dataclasses.replace(_job(toys, epochs=3, unlabeled="on"), pool=(*toys.images[:45], *unlabeled))
    run_train(job)  # features of the untrained trunk are in the cache from here on
    decoded, photo = [], dataset.Photo
    monkeypatch.setattr(dataset, "Photo", lambda ref: decoded.append(ref.image_id) or photo(ref))

    result = run_train(dataclasses.replace(job, out=toys.root / "again"))

    assert len(result.history["epochs"]) == 3
    assert sorted(decoded) == sorted(image.image_id for image in (*job.images, *job.holdout, *unlabeled))


def test_the_holdout_takes_no_part_in_training(toys):
    job = _job(toys)
    without = dataclasses.replace(job, holdout=(), holdout_targets=(), out=toys.root / "without")

    first, second = run_train(job), run_train(without)

    for part in ("heads", "trunk"):
        states = [load_model(result.files).__getattribute__(part) for result in (first, second)]
        rows = [state.state_dict() if isinstance(state, MultiHead) else state for state in states]
        assert all(torch.equal(rows[0][name], rows[1][name]) for name in rows[0])


def test_the_epoch_with_the_lowest_validation_loss_is_kept(toys, monkeypatch):
    losses = iter([1.0, 0.8, 0.5, 0.9, 0.7, 0.6, 0.6])
    monkeypatch.setattr(finetuning._Watched, "nll", lambda _: next(losses))

    result = run_train(_job(toys))

    assert result.history["best_epoch"] == 2


def test_training_stops_when_patience_runs_out(toys, monkeypatch):
    losses = iter([0.5] + [1.0] * 10)
    monkeypatch.setattr(finetuning._Watched, "nll", lambda _: next(losses))

    result = run_train(_job(toys, patience=2))

    assert result.history["best_epoch"] == 0
    assert len(result.history["epochs"]) == 2


def test_without_enough_labels_to_set_any_aside_every_epoch_is_trained(toys):
    job = dataclasses.replace(_job(toys, epochs=2), images=toys.images[:3], targets=toys.targets[:3])

    result = run_train(job)

    assert result.history["n_validation"] == 0
    assert result.history["best_epoch"] == 2


def test_a_loss_that_is_not_finite_is_an_error_with_a_way_out(toys, monkeypatch):
    logits = finetuning.Setup.logits
    monkeypatch.setattr(finetuning.Setup, "logits", lambda *of: logits(*of) * math.nan)

    with pytest.raises(ModelError, match="diverged") as caught:
        run_train(_job(toys))

    assert "learning_rate" in caught.value.hint
    assert not (toys.root / "runs" / "model").exists()


@pytest.mark.parametrize("n_pool", [0, 90])
def test_too_little_memory_takes_a_batch_in_pieces_to_the_same_end(toys, monkeypatch, caplog, n_pool):
    monkeypatch.setattr(finetuning, "SURE", 0.5)
    pool = toys.images[:n_pool]
    job = dataclasses.replace(_job(toys, epochs=1, unlabeled="on"), pool=pool)
    whole = run_train(job)
    logits = finetuning.Setup.logits

    def short_of_memory(setup, images, generator):
        if len(images) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(setup, images, generator)

    monkeypatch.setattr(finetuning.Setup, "logits", short_of_memory)

    pieces = run_train(dataclasses.replace(job, out=toys.root / "pieces"))

    assert "a batch of 16 images is now taken in 2 pieces" in caplog.text
    ours, theirs = (load_model(result.files).trunk for result in (whole, pieces))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("n", [3, 5, 6])
def test_too_little_memory_takes_a_batch_down_to_single_images(toys, monkeypatch, caplog, n):
    logits, sizes = finetuning.Setup.logits, []

    def short_of_memory(setup, images, generator):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(images))
        return logits(setup, images, generator)

    monkeypatch.setattr(finetuning.Setup, "logits", short_of_memory)
    job = dataclasses.replace(
        _job(toys, epochs=1, validation_share=0.01), images=toys.images[:n], targets=toys.targets[:n]
    )

    run_train(job)

    assert sizes == [1] * n
    assert f"a batch of {n} images is now taken in {n} pieces" in caplog.text


def test_a_single_image_that_does_not_fit_ends_training_and_keeps_the_last_model(toys, monkeypatch):
    before = run_train(_job(toys, epochs=1)).files

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(finetuning.Setup, "logits", full)

    with pytest.raises(DeviceError, match="even for the smallest batch: CUDA out of memory") as caught:
        run_train(_job(toys, epochs=2))

    assert "--device cpu" in caught.value.hint
    assert load_model(before).trunk


@pytest.mark.parametrize("validation_share", [0.01, 0.3])
def test_a_step_that_spoils_the_weights_never_replaces_the_last_good_model(toys, monkeypatch, validation_share):
    job = dataclasses.replace(_job(toys, epochs=1, validation_share=validation_share), holdout=(), holdout_targets=())
    good = run_train(job)
    assert (good.history["n_validation"] == 0) == (validation_share == 0.01)
    step = torch.optim.AdamW.step

    def spoiling(optimizer, *rest):
        step(optimizer, *rest)
        with torch.no_grad():
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.fill_(math.nan)

    last = math.ceil(good.history["n_train"] / 16)
    calls = []
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda *of: calls.append(1) or (spoiling if len(calls) == last else step)(*of)
    )

    with pytest.raises(ModelError):
        run_train(job)

    assert len(calls) == last
    assert load_model(good.files).metadata["seed"] == 1


def test_normalization_layers_keep_the_statistics_they_came_with(toys):
    version = load_model(run_train(_job(toys)).files)

    assert torch.equal(version.trunk["1.running_mean"], torch.full((8,), 0.25))
    assert not torch.equal(version.trunk["1.weight"], torch.ones(8))


def test_normalization_layers_without_statistics_go_on_learning_them(toys):
    job = _job(toys)
    model = job.settings.model.model_copy(update={"backbone": "toy_trunk:untrained"})
    job = dataclasses.replace(job, settings=dataclasses.replace(job.settings, model=model))
    settled = build_backbone(job.settings, search_paths(job.cache))
    hardware = build_hardware(job.settings, None)
    images = sorted(job.images, key=lambda image: image.sha256)
    settle_statistics(settled, images, hardware)

    trunk = load_model(run_train(job).files).trunk

    assert (trunk["1.running_mean"] - settled.module[1].running_mean).abs().max() > 0.01
    settled.module.load_state_dict(trunk)
    batches = load_batches(images, settled, hardware)
    seen = torch.cat([settled.module[0](settled.normalize(batch.images)) for batch in batches])
    torch.testing.assert_close(trunk["1.running_mean"], seen.mean((0, 2, 3)), atol=0.1, rtol=0.1)


def test_a_last_batch_of_one_image_has_no_statistics_and_is_trained_on_all_the_same(toys):
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), nn.BatchNorm1d(4))
    backbone = Backbone(trunk, n_features=4, image_size=16)
    train = Labeled(list(toys.images[:9]), torch.tensor(toys.targets[:9]))
    config = _config(toys, epochs=1, batch_size=4)
    hardware = build_hardware(EngineSettings.of(config), "cpu")
    norms = settle_statistics(backbone, train.images, hardware)
    objective = Objective(build_loss(EngineSettings.of(config)), None, None, "mean")
    setup = finetuning.Setup(
        backbone, MultiHead(4, 1, 3), objective, build_finetune_recipe(EngineSettings.of(config), 9), hardware, norms
    )

    history = finetuning.finetune(setup, train, train.take([]), 0, silent)

    assert math.isfinite(history["epochs"][0]["loss"])
    assert trunk[2].num_batches_tracked == 4


def test_each_class_gives_its_share_to_validation_and_never_its_last_image(toys):
    targets = torch.tensor([0] * 20 + [1] * 10 + [2])
    labeled = Labeled(list(toys.images[:31]), targets)

    train, validation = split_stratified(labeled, 0.2, seed=0)

    assert torch.bincount(validation.targets, minlength=3).tolist() == [4, 2, 0]
    assert torch.bincount(train.targets, minlength=3).tolist() == [16, 8, 1]
    together = {image.sha256 for image in (*train.images, *validation.images)}
    assert len(together) == 31
    assert split_stratified(labeled, 0.2, seed=0)[1].images == validation.images


def _pooled(toys, **train: object):
    """A job whose pool holds all images, of which 45 teach with their labels."""
    return dataclasses.replace(_job(toys, **{"unlabeled": "on", **train}), pool=toys.images)


def test_unlabeled_images_change_the_network_and_off_leaves_them_out(toys):
    without = run_train(_job(toys))
    taught = run_train(dataclasses.replace(_pooled(toys), out=toys.root / "taught"))
    off = run_train(dataclasses.replace(_pooled(toys, unlabeled="off"), out=toys.root / "off"))

    first, second, third = (load_model(result.files).trunk for result in (without, taught, off))
    assert all(torch.equal(tensor, third[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert (taught.history["n_unlabeled"], off.history["n_unlabeled"]) == (45, 0)
    assert all(0 < epoch["sure"] <= 1 for epoch in taught.history["epochs"])
    assert all("sure" not in epoch for epoch in off.history["epochs"])


def test_an_image_teaches_with_its_label_or_without_and_order_does_not_matter(toys, monkeypatch):
    given = []

    def listen(*arguments):
        given.append(arguments[-1])
        return finetuning.finetune(*arguments)

    monkeypatch.setattr(training, "finetune", listen)
    first = run_train(_pooled(toys, epochs=1))
    again = dataclasses.replace(_pooled(toys, epochs=1), pool=toys.images[::-1], out=toys.root / "again")
    second = run_train(again)

    assert first.files.sha256 == second.files.sha256
    assert given[0] == given[1] == sorted(toys.images[45:], key=lambda image: image.key)


def test_a_view_with_a_sure_class_teaches_its_changed_copy_and_an_unsure_one_nothing(toys):
    """Images of one pixel; the logits are the red value and 0. Of the values 0, 4 and 2, σ is 0.5, 0.982 and 0.881."""
    setup = _flat_setup(toys, image_size=1)
    heads = setup.heads
    heads.weight.data[:] = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    plain, changed = (_red(values) for values in ([0, 4, 2], [1, 3, 5]))
    batch = finetuning._Batch(_red([]), torch.empty(0, dtype=torch.int64), plain, changed)

    sure = finetuning._learn_to_agree(setup, batch, 0.5, torch.Generator())

    slope = 0.5 / 3 * (torch.tensor(3.0).sigmoid() - 1) * 3  # of -log σ(3) by the weight, in the mean of three images
    expected = torch.zeros(1, 2, 3)
    expected[0, :, 0] = torch.stack([slope, -slope])
    torch.testing.assert_close(heads.weight.grad, expected)
    assert sure.item() == 1


@pytest.mark.parametrize(("n_views", "n_plain"), [(1, 8), (8, 1)])
def test_every_image_of_a_small_batch_in_pieces_teaches(toys, n_views, n_plain, monkeypatch):
    """The number of pieces comes from an earlier, larger batch, so that some pieces have images of one kind only."""
    monkeypatch.setattr(finetuning, "SURE", 1e-9)
    values = torch.arange(n_views + n_plain).tolist()
    plain = _red(values[n_views:])
    batch = finetuning._Batch(_red(values[:n_views]), torch.zeros(n_views, dtype=torch.int64), plain, plain)
    found = []
    for pieces in (1, 4):
        setup = _flat_setup(toys, image_size=1)
        setup.heads.weight.data.zero_()
        values, _ = finetuning._step(setup, torch.optim.SGD([setup.heads.weight]), batch, pieces, torch.Generator())
        found.append((values, setup.heads.weight.grad))

    torch.testing.assert_close(found[0], found[1])
    assert found[0][0][1] == n_plain


def test_the_share_of_sure_images_is_of_those_shown(toys, monkeypatch):
    """Two unlabeled images, which every batch shows."""
    monkeypatch.setattr(finetuning, "SURE", 1e-9)

    result = run_train(dataclasses.replace(_job(toys, epochs=1, unlabeled="on"), pool=toys.images[75:77]))

    assert result.history["epochs"][0]["sure"] == 1


def _flat_setup(toys, image_size: int) -> finetuning.Setup:
    """A trunk that returns the values of its pixels, from 0 to 255, and one head for two classes."""
    settings, n = EngineSettings.of(_config(toys)), 3 * image_size**2
    unit = (1 / 255,) * 3
    look = Backbone(nn.Flatten(), n_features=n, image_size=image_size, mean=(0.0, 0.0, 0.0), std=unit)
    objective, hardware = Objective(build_loss(settings), None, None, "mean"), build_hardware(settings, "cpu")
    heads = MultiHead(n, 1, 2, torch.Generator().manual_seed(0))
    return finetuning.Setup(look, heads, objective, build_finetune_recipe(settings, 9), hardware)


def _red(values: list[int]) -> torch.Tensor:
    images = torch.zeros(len(values), 3, 1, 1, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(values, dtype=torch.uint8)
    return images


@pytest.mark.parametrize(("n_pool", "sizes"), [(0, [0, 0, 0]), (2, [2, 2, 2]), (20, [16, 16, 13]), (45, [16, 16, 13])])
def test_each_batch_has_as_many_unlabeled_images_as_labeled_ones_or_all(toys, n_pool, sizes):
    labeled, pool = Labeled(list(toys.images[:45]), torch.arange(45)), toys.images[45 : 45 + n_pool]
    setup = _flat_setup(toys, image_size=16)

    epoch, again = (list(finetuning._Shown(setup, labeled, pool, seed=7).batches(0)) for _ in range(2))
    other = list(finetuning._Shown(setup, labeled, pool, seed=8).batches(0))

    assert [len(batch.views) for batch in epoch] == [16, 16, 13]
    assert sorted(torch.cat([batch.targets for batch in epoch]).tolist()) == list(range(45))
    assert [len(batch.plain) for batch in epoch] == [len(batch.changed) for batch in epoch] == sizes
    plain, same, new = (torch.cat([batch.plain for batch in batches]) for batches in (epoch, again, other))
    assert torch.equal(plain, same)
    assert n_pool < 20 or not torch.equal(plain, new)


def test_unlabeled_images_come_in_random_order_again_and_again_across_epochs(toys):
    labeled = Labeled(list(toys.images[:9]), torch.zeros(9).long())
    shown = finetuning._Shown(_flat_setup(toys, image_size=16), labeled, toys.images[9:34])

    views = torch.cat([batch.plain for seed in (0, 1) for batch in shown.batches(seed)])
    rest = [place for place, _ in itertools.islice(shown._stream, 7 + 25)]

    assert len(views.flatten(1).unique(dim=0)) == 18  # of 25 images, so that seven are left of the first pass
    assert len(set(rest[:7])) == 7
    assert sorted(rest[7:]) == list(range(25))
    assert rest[7:] != list(range(25))


def test_an_unlabeled_image_that_cannot_be_read_is_left_out(toys):
    broken = dataclasses.replace(toys.images[80], path=str(toys.root / "gone.png"))
    pool = tuple(broken if image.image_id == broken.image_id else image for image in toys.images[75:])

    job = _job(toys, epochs=1, unlabeled="on")
    with_gap = run_train(dataclasses.replace(job, pool=pool))
    without = run_train(dataclasses.replace(job, pool=(broken,), out=toys.root / "without"))

    assert with_gap.failed == without.failed == ()
    assert with_gap.history["epochs"][0]["sure"] > 0
    assert without.history["epochs"][0]["sure"] == 0


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_unlabeled_images_go_with_every_loss(toys, loss, monkeypatch):
    monkeypatch.setattr(finetuning, "SURE", 0.6)
    setup = _flat_setup(toys, image_size=1)
    named = build_loss(EngineSettings.of(_config(toys, loss=loss)))
    setup = dataclasses.replace(setup, objective=Objective(named, None, None, "mean"))
    setup.heads.weight.data[:] = torch.tensor([[[1.0, 0.0, 0.0], [0.9, 0.0, 0.0]]])
    batch = finetuning._Batch(_red([0]), torch.tensor([0]), _red([9, 40, 200]), _red([0, 3, 9]))

    found = finetuning._backward(setup, batch, batch, torch.Generator())

    assert bool(torch.isfinite(found).all())
    assert found[1] > 0
    assert bool(torch.isfinite(setup.heads.weight.grad).all())
    assert setup.heads.weight.grad[0, 0, 0] < 0  # towards the first class, of which the plain views are sure


@pytest.mark.parametrize(
    ("n_labels", "train", "epochs", "patience"),
    [
        (255, {}, 80, 80),  # 8 updates an epoch
        (20, {}, 640, 640),  # 1
        (1600, {}, 40, 13),  # 50
        (3200, {}, 40, 10),  # 100
        (255, {"batch_size": 64}, 160, 160),  # 4
        (255, {"epochs": 12, "patience": 3}, 12, 3),
    ],
)
def test_few_labels_get_more_epochs_since_an_epoch_has_few_updates(toys, n_labels, train, epochs, patience):
    settings = EngineSettings.of(toys.config(toys.trunk, TrainConfig(**train), mode="finetune", weights="none"))

    recipe = build_finetune_recipe(settings, n_labels)

    assert (recipe.epochs, recipe.patience) == (epochs, patience)


def test_without_a_validation_part_training_is_not_made_longer(toys):
    """Nothing says when to stop then, and the last epoch is kept."""
    settings = {"epochs": None, "batch_size": None}
    few = dataclasses.replace(_job(toys, **settings), images=toys.images[:9], targets=toys.targets[:9])

    result = run_train(few)

    assert (result.history["n_validation"], result.history["best_epoch"]) == (0, 40)


def test_unlabeled_images_teach_only_in_fine_tuning_and_if_that_is_asked_for():
    tuned, frozen = ModelConfig(mode="finetune"), ModelConfig()

    assert TrainConfig(unlabeled="on").learns_unlabeled(tuned)
    assert not TrainConfig().learns_unlabeled(tuned)
    assert not TrainConfig(unlabeled="on").learns_unlabeled(frozen)


def test_epochs_are_compared_at_their_best_temperature_if_a_calibrator_follows(toys):
    """Heads that are three times as sure predict the same classes, and the same probabilities after a temperature."""
    setup, images = _flat_setup(toys, image_size=16), list(toys.images[:30])
    generator = torch.Generator().manual_seed(0)
    setup.heads.weight.data = torch.rand(setup.heads.weight.shape, generator=generator) / 1000
    pixels = torch.cat([batch.images for batch in load_batches(images, setup.backbone, setup.hardware)])
    with torch.no_grad():
        targets = setup.heads(setup.backbone.normalize(pixels).flatten(1))[0].argmax(dim=1)
    targets[::5] = (
        1 - targets[::5]
    )  # a fifth of the predictions is wrong, so that the best temperature is within its bounds
    watched, plain = Labeled(images, targets), dataclasses.replace(setup, is_calibrated=False)

    before = [finetuning._Watched(one, watched).nll() for one in (setup, plain)]
    setup.heads.weight.data *= 3
    after = [finetuning._Watched(one, watched).nll() for one in (setup, plain)]

    assert after[0] == pytest.approx(before[0], abs=1e-5)
    assert abs(after[1] - before[1]) > 0.01
    assert max(before[0], after[0]) <= min(before[1], after[1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, False), ({"n_holdout": 50}, True), ({"n_holdout": 50, "is_test": True}, False), ({"n_holdout": 49}, False)],
)
def test_a_calibrator_follows_with_enough_labels_of_a_holdout_that_may_be_fitted_to(
    toys, monkeypatch, changes, expected
):
    given = []

    def listen(setup, *rest):
        given.append(setup.is_calibrated)
        return finetuning.finetune(setup, *rest)

    monkeypatch.setattr(training, "finetune", listen)
    n = changes.get("n_holdout", 0)
    holdout = {"holdout": toys.images[30 : 30 + n], "holdout_targets": toys.targets[30 : 30 + n]}
    part = {"images": toys.images[:30], "targets": toys.targets[:30], "is_test": changes.get("is_test", False)}

    run_train(dataclasses.replace(_job(toys, epochs=1), **part, **holdout))

    assert given == [expected]
