"""A card that is nearly full: batches are halved or split, and an error says if even that is too large.

On a card, one plain allocation really takes the memory. In a rehearsal, large batches raise the error instead.
"""

import contextlib
import dataclasses
import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from gpu_toys import REHEARSES, Toys, hardware, on, pictures, plain_trunk, relative
from torch import Tensor

from alloop.engine import finetune as finetuning
from alloop.engine.build import build_finetune_recipe, build_loss
from alloop.engine.features import run_features
from alloop.engine.objective import Objective
from alloop.engine.settings import EngineSettings
from alloop.engine.trunk_passes import prepare_trunk, run_trunk
from alloop.errors import DeviceError
from alloop.models.backbones import Backbone
from alloop.models.heads import MultiHead

BATCH, SMALL = (16, 4) if REHEARSES else (256, 16)
MIB = 2**20
FULL = "CUDA out of memory. (a rehearsal)"


def peak(device: torch.device, work: Callable[[], object]) -> int:
    """Return the bytes that the work takes from the card, besides those already in use."""
    work()  # loads libraries
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_reserved(device) - before


@contextlib.contextmanager
def filled(device: torch.device, leave: int) -> Iterator[None]:
    """Take all memory of the card except this many bytes."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    block = torch.empty(free - leave, dtype=torch.uint8, device=device)
    try:
        yield
    finally:
        del block
        torch.cuda.empty_cache()


@contextlib.contextmanager
def too_little(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, work: Callable[[int], object], measured
) -> Iterator[None]:
    """Leave memory for a small batch only."""
    if device.type == "cuda":
        small, large = (peak(device, lambda n=n: work(n)) for n in (SMALL, BATCH))
        leave = max(3 * small, 48 * MIB)
        measured("MiB that the large batch takes", large / MIB)
        measured("MiB that are left", leave / MIB)
        if leave > 0.7 * large:
            pytest.skip(f"the large batch takes {large / MIB:.0f} MiB only")
        with filled(device, leave):
            yield
        return
    with monkeypatch.context() as patch:
        normalize = Backbone.normalize

        def short(backbone: Backbone, images: Tensor) -> Tensor:
            if len(images) > SMALL:
                raise torch.OutOfMemoryError(FULL)
            return normalize(backbone, images)

        patch.setattr(Backbone, "normalize", short)
        yield


def test_features_come_in_halves_and_are_the_same(device: torch.device, monkeypatch, caplog, measured):
    backbone = plain_trunk()
    backbone = dataclasses.replace(backbone, module=on(backbone.module, device).eval())
    images = pictures(BATCH, backbone.image_size)

    def work(n: int) -> Tensor:
        return run_trunk(prepare_trunk(backbone, device), images[:n])

    whole = work(BATCH)
    with too_little(device, monkeypatch, work, measured), caplog.at_level(logging.WARNING):
        halves = work(BATCH)

    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    measured.at_least("times a batch was halved", len(said), 1)
    measured("relative difference", relative(halves, whole), 1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_in_pieces_has_the_same_gradient(
    toys: Toys, device: torch.device, monkeypatch, measured, precision: str
):
    """Gradients in bfloat16 are rounded differently in each piece, so the bound 1e-3 holds for float32 only."""
    if precision == "float32":
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    backbone = plain_trunk()
    config = toys.config("plain_trunk", mode="finetune")
    heads = MultiHead(backbone.n_features, 2, 4, torch.Generator().manual_seed(0))
    objective = Objective(build_loss(EngineSettings.of(config)), None, None, "mean")
    setup = finetuning.Setup(
        backbone, heads, objective, build_finetune_recipe(EngineSettings.of(config), BATCH), hardware(device, BATCH)
    )
    setup.keep_gradients(True)
    modules = (backbone.module, heads)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    images, targets = pictures(BATCH, backbone.image_size), torch.arange(BATCH) % 4

    monkeypatch.setattr(finetuning, "SURE", 0.1)  # so that every unlabeled image teaches

    def work(n: int) -> tuple[Tensor, int]:
        batch = finetuning._Batch(images[:n], targets[:n], images[:n].flip(2), images[:n].flip(3))
        _, pieces = finetuning._step(setup, optimizer, batch, 1, torch.Generator().manual_seed(0))
        gradient = torch.cat([parameter.grad.double().flatten().cpu() for parameter in parameters])
        optimizer.zero_grad()
        return gradient, pieces

    whole, one = work(BATCH)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    with too_little(device, monkeypatch, work, measured):
        parts, pieces = work(BATCH)
    gc.collect()
    after = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0

    measured.same("pieces with room", one, 1)
    measured.at_least("pieces without", pieces, 2)
    bound = 1e-3 if precision == "float32" else 1e-2
    measured("relative difference of the gradient", float((parts - whole).norm() / whole.norm()), bound)
    measured("bytes more than before the step", after - before, 1e6)


def test_an_image_that_does_not_fit_is_a_clear_error_and_nothing_is_lost(
    toys: Toys, device: torch.device, tmp_path: Path, monkeypatch, measured
):
    config = toys.config("wide_trunk", {"batch_size": 2})
    job = dataclasses.replace(toys.feature_job(config, device, tmp_path / "cache"), images=toys.images[:2])
    run_features(job)
    more = dataclasses.replace(job, images=toys.images[:4])

    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(filled(device, 40 * MIB))
        else:
            patch = stack.enter_context(monkeypatch.context())
            patch.setattr(Backbone, "normalize", _never)
        with pytest.raises(DeviceError) as caught:
            run_features(more)
        measured.say("what it says", caught.value.message[:200])
        assert "image_size" in caught.value.hint
        del caught
        gc.collect()

    told: list[int] = []
    result = run_features(more, lambda label, done, total: told.append(total))
    measured.same("images computed afterwards", told[0], 2)
    measured.same("features in the end", result.features.shape, (4, 256))


def _never(*_: object) -> Tensor:
    raise torch.OutOfMemoryError(FULL)


def test_a_batch_size_of_alloops_choice_fits_an_empty_card(toys: Toys, card: torch.device, measured):
    """A batch of 256 images with a usual trunk needs far less memory than a card has; the test records how much."""
    from gpu_toys import load_trunk

    backbone = load_trunk("resnet50", None)
    trunk = prepare_trunk(backbone, card)
    images = pictures(8, backbone.image_size).repeat(32, 1, 1, 1)
    taken = peak(card, lambda: run_trunk(trunk, images))

    measured("GiB for 256 images of resnet50 in float32", taken / 2**30, 40.0)
