"""Fine-tuning on a GPU: it learns, keeps the best epoch, is repeatable, and leaves nothing behind."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpu_toys import CPU, REHEARSES, Toys, hardware, on, pictures
from torch import nn

from alloop.engine import finetune as finetuning
from alloop.engine.build import build_backbone, build_finetune_recipe, build_loss, search_paths
from alloop.engine.finetune import Labeled, Setup, finetune
from alloop.engine.model_files import load_model
from alloop.engine.objective import Objective
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.engine.views import draw_numbers, make_views, resize_each, resize_together
from alloop.errors import ModelError
from alloop.losses.mixing import Mixing
from alloop.models.backbones import Backbone, load_backbone
from alloop.models.dropout import HeadDropout
from alloop.models.heads import MultiHead
from alloop.progress import silent

TRAIN = {"epochs": 2 if REHEARSES else 8, "learning_rate": 0.03, "batch_size": 16, "validation_share": 0.25}


def _job(toys: Toys, device: torch.device, root: Path, name: str = "model", **settings: object):
    train = {**TRAIN, "unlabeled": "on", **settings.pop("train", {})}
    config = toys.config(settings.pop("backbone", "dropping_trunk"), train, mode="finetune", **settings)
    return toys.train_job(config, device, root / f"cache {name}", root / name, pool=toys.images)


def _setup(toys: Toys, device: torch.device, backbone: Backbone, n_heads: int = 2, **recipe: object) -> Setup:
    config = toys.config("plain_trunk", TRAIN, mode="finetune")
    heads = MultiHead(backbone.n_features, n_heads, 4, torch.Generator().manual_seed(0))
    made = dataclasses.replace(build_finetune_recipe(EngineSettings.of(config), n_labels=60), **recipe)
    setup = Setup(
        backbone,
        heads,
        Objective(build_loss(EngineSettings.of(config)), None, None, "mean"),
        made,
        hardware(device, 16),
    )
    setup.keep_gradients(True)
    return setup


def _labeled(toys: Toys, rows: slice) -> Labeled:
    return Labeled(list(toys.images[rows]), torch.tensor(toys.targets[rows]))


def test_the_loss_falls_and_the_best_epoch_is_what_is_kept(toys: Toys, device: torch.device, measured):
    backbone = build_backbone(EngineSettings.of(toys.config("plain_trunk", mode="finetune")), search_paths(toys.root))
    setup, validation = _setup(toys, device, backbone, epochs=6), _labeled(toys, slice(60, 100))

    history = finetune(setup, _labeled(toys, slice(0, 60)), validation, 1, silent)

    losses = [epoch["loss"] for epoch in history["epochs"]]
    measured("last loss in the first one", losses[-1] / losses[0], 0.98)
    kept = finetuning._Watched(setup, validation).nll()
    best = min(epoch["validation_nll"] for epoch in history["epochs"])
    measured("NLL of what was kept, minus the best epoch's", kept - best, 1e-5)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "either", "mc-dropout", "ensemble", "multi-head"])
def test_mixing_dropout_and_several_networks_learn_under_autocast(
    toys: Toys, device: torch.device, tmp_path: Path, measured, kind: str
):
    is_mixing = kind in ("mixup", "cutmix", "either")
    model = {"uncertainty": "single" if is_mixing else kind, "members": None if is_mixing else 2}
    job = _job(toys, device, tmp_path, train={"mixing": kind} if is_mixing else {}, **model)

    result = run_train(job)

    for history in result.history.get("networks", [result.history]):
        losses = [epoch["loss"] for epoch in history["epochs"]]
        assert all(math.isfinite(loss) for loss in losses)
        measured("lowest loss in the first one", min(losses) / losses[0], 1.0)
    log_probs = torch.from_numpy(result.holdout_pooled_log_probs)
    right = log_probs.argmax(1) == torch.tensor(toys.targets[60:100])
    measured.at_least("share of the holdout that is right (chance: 0.25)", float(right.double().mean()), 0.3)


def test_autocasts_cache_cuts_no_gradient(toys: Toys, device: torch.device, measured):
    """Measuring the validation part needs no gradients, and comes just before a step that needs them."""
    backbone = build_backbone(EngineSettings.of(toys.config("plain_trunk", mode="finetune")), search_paths(toys.root))
    setup = _setup(toys, device, backbone, mixing=Mixing("mixup"), dropout=HeadDropout(0.2))
    train = _labeled(toys, slice(0, 16))
    (batch,) = finetuning._Shown(setup, train, toys.images[16:32]).batches(0)

    finetuning._Watched(setup, train).nll()
    finetuning._backward(setup, batch, batch, torch.Generator().manual_seed(0))

    without = [
        name
        for module in (setup.backbone.module, setup.heads)
        for name, parameter in module.named_parameters()
        if parameter.grad is None or not bool(torch.isfinite(parameter.grad).all()) or not bool(parameter.grad.any())
    ]
    measured.same("parameters without a gradient", without, [])


def test_normalization_that_came_with_statistics_keeps_them(toys: Toys, device: torch.device, tmp_path: Path, measured):
    job = _job(toys, device, tmp_path, backbone="own_trunk", train={"epochs": 2})
    before = build_backbone(job.settings, search_paths(job.cache)).module.state_dict()

    trunk = load_model(run_train(job).files).trunk

    moved = [name for name in trunk if "running" in name and not torch.equal(trunk[name], before[name])]
    measured.same("statistics that moved", moved, [])


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
@pytest.mark.parametrize("trunk", ["own_trunk", "dropping_trunk", "resnet18"])
def test_the_same_job_twice_gives_the_same_bytes(
    toys: Toys, device: torch.device, tmp_path: Path, measured, trunk: str, mode: str
):
    """Check the README's promise: the same seed, labels and machine give the same bytes."""
    config = toys.config(trunk, {**TRAIN, "epochs": 1 if REHEARSES else 3}, mode=mode)
    if trunk == "resnet18":
        model = config.model.model_copy(update={"backbone": "resnet18", "image_size": 32})
        config = config.model_copy(update={"model": model})
    files = []
    for number in range(2):
        job = toys.train_job(config, device, tmp_path / f"cache {number}", tmp_path / f"model {number}")
        files.append(run_train(job).files)

    one, other = (load_model(each) for each in files)
    states = [{**version.trunk, **version.heads.state_dict()} for version in (one, other)]
    largest = max(float((states[0][name].double() - states[1][name].double()).abs().max()) for name in states[0])
    measured("largest difference of a weight", largest)
    measured.same("model digest", files[0].sha256[:12], files[1].sha256[:12])


def test_a_step_that_spoils_the_weights_replaces_no_good_model(
    toys: Toys, device: torch.device, tmp_path: Path, monkeypatch, measured
):
    job = _job(toys, device, tmp_path, train={"epochs": 1})
    good = run_train(job).files
    step = torch.optim.AdamW.step

    def spoiling(optimizer, *rest):
        step(optimizer, *rest)
        with torch.no_grad():
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.fill_(math.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)

    with pytest.raises(ModelError) as caught:
        run_train(job)

    measured.say("what it says", caught.value.message)
    assert load_model(good).trunk


def test_nothing_stays_on_the_card_after_training(
    toys: Toys, card: torch.device, fresh: Callable[[str], Path], measured
):
    run_train(_job(toys, card, fresh("warm"), train={"epochs": 1}))  # loads libraries, which keep a workspace
    before = torch.cuda.memory_allocated(card)

    run_train(_job(toys, card, fresh("cold"), train={"epochs": 2}))

    measured("bytes more than before", torch.cuda.memory_allocated(card) - before, 1e6)


def test_a_step_on_the_device_has_the_cpus_gradient(toys: Toys, device: torch.device, measured):
    """Gradients in mixed precision are equal up to the rounding of bfloat16."""
    gradients = []
    for where in (device, CPU):
        setup = _setup(toys, where, load_plain(toys))
        (batch,) = finetuning._Shown(setup, _labeled(toys, slice(0, 16))).batches(0)
        finetuning._backward(setup, batch, batch, torch.Generator())
        gradients.append(flat_gradient(setup))

    measured("relative difference", float((gradients[0] - gradients[1]).norm() / gradients[1].norm()), 0.1)


def load_plain(toys: Toys) -> Backbone:
    return build_backbone(EngineSettings.of(toys.config("plain_trunk", mode="finetune")), search_paths(toys.root))


def flat_gradient(setup: Setup) -> torch.Tensor:
    modules = (setup.backbone.module, setup.heads)
    return torch.cat([weight.grad.double().cpu().flatten() for module in modules for weight in module.parameters()])


def test_a_trunk_with_dropout_within_starts_from_the_same_numbers_each_time(toys: Toys, device: torch.device, measured):
    """Dropout in a trunk draws from the device's own random stream, which fine-tuning seeds and then restores."""

    def stream() -> torch.Tensor:
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    fresh = stream()
    backbone = load_backbone("resnet18", "none", 32, seed=3)
    before = stream()
    module = nn.Sequential(on(backbone.module, CPU), nn.Dropout(0.5)).eval()  # as every trunk is loaded
    losses = []
    for _ in range(2):
        copied = dataclasses.replace(backbone, module=on(module, CPU))
        setup = _setup(toys, device, copied, epochs=1)
        history = finetune(setup, _labeled(toys, slice(0, 32)), _labeled(toys, slice(60, 60)), 1, silent)
        losses.append(history["epochs"][0]["loss"])

    measured.same("loss", losses[0], losses[1])
    measured.same("loading a trunk leaves the device's random stream", torch.equal(fresh, before), True)
    measured.same("the device's random stream is as it was", torch.equal(before, stream()), True)


def test_no_step_waits_for_the_card(toys: Toys, card: torch.device, measured):
    """The host may read from the card once an epoch only. The first epoch loads libraries and decodes."""
    setup = _setup(toys, card, load_plain(toys), mixing=Mixing("either"), dropout=HeadDropout(0.2))
    shown = finetuning._Shown(setup, _labeled(toys, slice(0, 60)))
    optimizer, schedule = finetuning._optimizer(setup, n_steps=20)

    def epoch(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for batch in shown.batches(seed):
            finetuning._step(setup, optimizer, batch, 1, generator)
            schedule.step()

    epoch(0)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            epoch(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    waits = [f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
    measured.same("places that wait", sorted(set(waits)), [])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_views_on_the_device_are_the_cpus_within_one_level(device: torch.device, measured, interpolation: str):
    images = [pictures(1, side, seed=side)[0][:, : side - cut] for side, cut in ((64, 0), (70, 13), (200, 50), (33, 0))]
    images += [(torch.arange(3 * 96 * 80).reshape(3, 96, 80) % 2 * 255).to(torch.uint8)]  # a pixel's width of stripes
    held = [image.to(device) for image in images]

    together = resize_together(held, 64, interpolation, device)
    alone = torch.cat([resize_together([image], 64, interpolation, device) for image in held])

    reference = resize_each(images, 64, interpolation, CPU)
    measured("levels of difference from the CPU", int((together.cpu().int() - reference.int()).abs().max()), 1)
    measured.same("a view is the same alone", torch.equal(together, alone), True)
    look = Backbone(nn.Identity(), 1, image_size=64, interpolation=interpolation)
    numbers = draw_numbers([f"{number}" for number in range(len(images))], seed=3)
    ours, theirs = make_views(held, numbers, look, device), make_views(images, numbers, look, CPU)
    measured("levels of difference of whole views", int((ours.cpu().int() - theirs.int()).abs().max()), 1)
