"""Part C: alloop's speed compared with the speed that the machine allows, both measured in this run.

The ceiling of a trunk is its forward pass on tensors that are already on the card, in bfloat16 and channels-last memory
order (float32 on a CPU), at the best of several batch sizes. Rows with a target say whether it was met.
"""

import contextlib
import copy
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from networks import tiny_vit
from pictures import load, make_large
from rows import Options, Rows, parse, peak_gib, reset_peak, seconds_of, synchronize
from torch import Tensor, nn

from alloop.calibration.folds import draw_folds
from alloop.config.schema import Config, TrainConfig
from alloop.engine import finetune as finetuning
from alloop.engine.build import (
    HEAD_DECAY,
    HEAD_PRIOR,
    HEAD_STEPS,
    FinetuneRecipe,
    Hardware,
    HeadRecipe,
    build_hardware,
    build_loss,
)
from alloop.engine.cross_validate import N_FOLDS
from alloop.engine.device import deterministic
from alloop.engine.features import load_batches, trunk_batches
from alloop.engine.finetune import Labeled, Setup, finetune
from alloop.engine.fit_heads import HeadFits
from alloop.engine.objective import Objective
from alloop.engine.settings import EngineSettings
from alloop.engine.trunk_passes import Growth, pass_trunks
from alloop.losses.multi_head import assign_specialties, class_weights
from alloop.models.backbones import Backbone, load_backbone
from alloop.models.heads import MultiHead
from alloop.pool.dataset import ImageBatch
from alloop.records import ImageRef

TRUNKS = ("resnet50", "efficientnet_b0", "vit_b_16", "convnext_tiny")
N_HEADS, N_CLASSES = 4, 10


def main() -> None:
    options = parse(__doc__)
    rows = Rows(options.out, "C")
    config = Config.model_validate({"project": {"classes": ["a", "b"]}})
    hardware = build_hardware(EngineSettings.of(config), str(options.device))
    photos = load("trashnet", options).refs
    side = (4000, 3000) if not options.tiny else (400, 300)
    large = make_large(options.work / "large", options.size(30, 3), *side)
    measure_heads(options, rows)
    with rows.guarded("fine-tuning"):
        measure_epoch(photos, hardware, options, rows)
    decoding = None
    with rows.guarded("decoding"):
        decoding = measure_decoding(photos, large, hardware, options, rows)
    for name in TRUNKS:
        with rows.guarded(name):
            measure_trunk(name, photos, hardware, decoding, options, rows)


# -- reading ----------------------------------------------------------------------------------------------------------


def measure_decoding(
    photos: tuple[ImageRef, ...], large: tuple[ImageRef, ...], hardware: Hardware, options: Options, rows: Rows
) -> float:
    """Images a second from JPEG file to pixels at the trunk's size, without a trunk. Return that of small photos.

    The first rate is that of all cores, with the start of their processes.
    """
    look = Backbone(nn.Identity(), 1, image_size=224, resize=256)
    found = []
    for workers, what in {n_cores(): "all cores", hardware.workers: "alloop's default"}.items():
        for item, refs, times in (("TrashNet", photos, 4), ("12 megapixels", large, 2)):
            images = refs * options.size(times, 1)
            # DataLoader starts processes only above four batches: small batches let the few large pictures use them.
            reader = replace(hardware, workers=workers, batch_size=min(hardware.batch_size, max(1, len(images) // 64)))
            started = time.perf_counter()
            n = sum(len(batch.positions) for batch in load_batches(images, look, reader))
            found.append(n / (time.perf_counter() - started))
            note = f"{workers} processes ({what}), start included"
            rows.add(f"decoding, {item}", "rate", found[-1], "images/s", note)
    return found[0]


def n_cores() -> int:
    return len(os.sched_getaffinity(0))


# -- trunks -----------------------------------------------------------------------------------------------------------


def measure_trunk(
    name: str,
    photos: tuple[ImageRef, ...],
    hardware: Hardware,
    decoding: float | None,
    options: Options,
    rows: Rows,
) -> None:
    """Compare features from pixels in memory with the bare forward pass, and those from files with decoding, too."""
    backbone = load_trunk(name, options)
    ceiling = best_rate(name, backbone, options, rows)
    for precision in dict.fromkeys(("float32", hardware.precision)):
        backbone = backbone.in_precision(precision)
        measure_from_memory(name, backbone, hardware, ceiling, options, rows)
    images = photos[: options.size(len(photos), 4)] * options.size(8, 1)
    reader = replace(hardware, workers=n_cores())
    started = time.perf_counter()
    for _ in trunk_batches(images, backbone, reader):
        pass
    rate = len(images) / (time.perf_counter() - started)
    note = f"{reader.workers} processes, {len(images)} photos, start included"
    slower = ceiling if decoding is None else min(ceiling, decoding)
    report(
        rows, name, "features from JPEG files", rate, slower, note, target=0.9, of="the slower of decoding and trunk"
    )


def measure_from_memory(
    name: str, backbone: Backbone, hardware: Hardware, ceiling: float, options: Options, rows: Rows
) -> None:
    """Run pixels in pinned memory through the path that files take after decoding, for about a second.

    In alloop's own precision it runs a second time, which counts: the first finds the size of batches.
    """
    is_own = backbone.precision == hardware.precision
    n = options.size(32, 2)
    pixels = torch.randint(0, 256, (n, 3, backbone.image_size, backbone.image_size), dtype=torch.uint8)
    piece = ImageBatch(pixels, torch.arange(n), tuple(range(n)), ())
    pieces = [piece.pin_memory() if options.is_cuda else piece] * options.size(
        int(ceiling / (n if is_own else 5 * n)), 1
    )
    growth = Growth(hardware)
    reset_peak(options.device)
    for _ in range(options.size(2 if is_own else 1, 1)):
        started = time.perf_counter()
        for _ in pass_trunks(pieces, [backbone], hardware, growth):
            pass
        rate = n * len(pieces) / (time.perf_counter() - started)
    note = f"{backbone.precision}, up to {growth.ran} images at once"
    what = "features from memory" if is_own else f"features from memory in {backbone.precision}"
    report(rows, name, what, rate, ceiling, note, target=0.85 if is_own else None)
    rows.add(name, f"peak memory, {what}", peak_gib(options.device), "GiB", note)


def load_trunk(name: str, options: Options) -> Backbone:
    """Return a trunk of torchvision with random weights. A tiny run makes its images smaller.

    Vision transformers take one size only, so a tiny run has a small one of its own.
    """
    if not options.tiny:
        return load_backbone(name, "none")
    return tiny_vit() if name.startswith("vit") else load_backbone(name, "none", 64)


def best_rate(name: str, backbone: Backbone, options: Options, rows: Rows) -> float:
    """Return images a second of the bare forward pass at the best batch size."""
    rates = {}
    dtype = torch.bfloat16 if options.is_cuda else torch.float32
    trunk = copy.deepcopy(backbone.module).to(options.device, dtype, memory_format=torch.channels_last)
    for batch in (256, 512, 1024) if not options.tiny else (2,):
        images = random_images(batch, backbone, options.device, dtype)
        rates[batch] = batch / seconds_of(lambda: forward(trunk, images), options)  # noqa: B023
    best = max(rates, key=lambda batch: rates[batch])
    dtype_name = str(dtype).removeprefix("torch.")
    rows.add(name, "ceiling", rates[best], "images/s", f"{dtype_name}, channels last, batch {best}")
    return rates[best]


@torch.inference_mode()
def forward(trunk: nn.Module, images: Tensor) -> Tensor:
    output: Tensor = trunk(images)
    return output


def random_images(n: int, backbone: Backbone, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return random images [n, 3, S, S]. Not zeros, since cards multiply zeros faster."""
    images = torch.randn(n, 3, backbone.image_size, backbone.image_size, device=device, dtype=dtype)
    return images.contiguous(memory_format=torch.channels_last)


def report(
    rows: Rows,
    item: str,
    measure: str,
    rate: float,
    ceiling: float,
    note: str,
    *,
    target: float | None = None,
    of: str = "ceiling",
) -> None:
    rows.add(item, measure, rate, "images/s", note)
    ratio = rate / ceiling
    aim = "" if target is None else f"target {target:g}: {'met' if ratio >= target else 'missed'}; "
    rows.add(item, f"{measure} / {of}", ratio, "", aim + note)


# -- fine-tuning ------------------------------------------------------------------------------------------------------


EPOCH_TARGET = 1.15  # most time of an epoch, as a multiple of a bare epoch's


def measure_epoch(photos: tuple[ImageRef, ...], hardware: Hardware, options: Options, rows: Rows) -> None:
    """Compare an epoch of ResNet-50 with a bare loop of PyTorch over batches of the same views held on the card.

    A tiny run takes ResNet-18. The first epoch decodes the photos; the shortest of the others is compared.
    """
    n, batch_size = options.size(512, 8), options.size(64, 4)
    images = list((photos * 2)[:n])
    labeled = Labeled(images, torch.arange(len(images)) % N_CLASSES)
    workers = options.size(n_cores(), 0)
    reset_peak(options.device)
    first, *others = epoch_seconds(labeled, (), replace(hardware, workers=workers), batch_size, options)
    note = f"{residual(options)}, {n} photos, batch {batch_size}"
    rows.add("fine-tuning", "the first epoch", first, "s", f"{note}, decoded by {workers} processes")
    rows.add("fine-tuning", "an epoch", min(others), "s", f"{note}, random views made on the card")
    rows.add("fine-tuning", "peak memory", peak_gib(options.device), "GiB", note)
    bare = measure_bare_epochs(labeled, batch_size, hardware, options, rows)
    ratio = min(others) / bare
    verdict = "met" if ratio <= EPOCH_TARGET else "missed"
    rows.add("fine-tuning", "an epoch / a bare epoch", ratio, "", f"target: at most {EPOCH_TARGET}: {verdict}")
    _, *taught = epoch_seconds(labeled, images, replace(hardware, workers=workers), batch_size, options)
    rows.add("fine-tuning", "with unlabeled images / without", min(taught) / min(others), "", "epochs; as many of both")


def epoch_seconds(
    labeled: Labeled, unlabeled: Sequence[ImageRef], hardware: Hardware, batch_size: int, options: Options
) -> list[float]:
    """Return the seconds of each epoch of fine-tuning. The first one also decodes the images."""
    setup = make_setup(hardware, batch_size, options)
    moments = [time.perf_counter()]

    def note_time(label: str, done: int, total: int) -> None:
        if label == "epochs":
            moments.append(time.perf_counter())

    with deterministic():  # as `alloop train` runs it
        finetune(setup, labeled, labeled.take([]), 0, note_time, unlabeled)
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


def measure_bare_epochs(labeled: Labeled, batch_size: int, hardware: Hardware, options: Options, rows: Rows) -> float:
    """Return the seconds of the shortest bare epoch. The other rows say what the parts of our own epoch cost."""
    setup = make_setup(replace(hardware, workers=0), batch_size, options)
    setup.keep_gradients(True)
    shown = finetuning._Shown(setup, labeled)
    batches = [(batch.views, batch.targets) for batch in shown.batches(0)]
    optimizer, _ = finetuning._optimizer(setup, 1000)

    def views() -> Iterator[tuple[Tensor, Tensor]]:
        return ((batch.views, batch.targets) for batch in shown.batches(0))

    def held() -> Iterator[tuple[Tensor, Tensor]]:
        return iter(batches)

    times = {}
    for measure, note, source, strict in (
        ("a bare epoch", "the same views on the card beforehand, bfloat16, channels last, fused AdamW", held, False),
        ("a bare epoch, deterministic", "the same, with deterministic operations, as alloop trains", held, True),
        ("a bare epoch with views", "the same, and the views are made on the card", views, True),
    ):
        with deterministic() if strict else contextlib.nullcontext():
            times[measure] = bare_epoch(setup, optimizer, source, options)
        rows.add("fine-tuning", measure, times[measure], "s", note)
    return times["a bare epoch"]


def residual(options: Options) -> str:
    return "resnet18" if options.tiny else "resnet50"


def make_setup(hardware: Hardware, batch_size: int, options: Options) -> Setup:
    train = TrainConfig()
    recipe = FinetuneRecipe(options.size(4, 2), batch_size, 1e-3, 0.01, train.loss_scale, patience=9)
    backbone = load_backbone(residual(options), "none").resized_to(options.size(224, 64))
    heads = MultiHead(backbone.n_features, N_HEADS, N_CLASSES, torch.Generator().manual_seed(0))
    return Setup(backbone, heads, make_objective().to(options.device), recipe, hardware)


def bare_epoch(
    setup: Setup,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    options: Options,
) -> float:
    """Return the seconds of the shortest of three epochs, after one that warms up."""
    backbone, times = setup.backbone, []
    for _ in range(options.size(4, 2)):
        synchronize(options.device)
        started = time.perf_counter()
        for pixels, labels in batches():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(options.device.type, torch.bfloat16, enabled=options.is_cuda):
                normal = backbone.normalize(pixels).contiguous(memory_format=torch.channels_last)
                features = backbone.module(normal)
            torch.autograd.backward(setup.objective(setup.heads(features), labels))
            optimizer.step()
        synchronize(options.device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


# -- heads ------------------------------------------------------------------------------------------------------------


def make_objective() -> Objective:
    config = Config.model_validate({"project": {"classes": ["a", "b"]}})
    specialties = assign_specialties(N_CLASSES, N_HEADS, torch.Generator().manual_seed(0))
    return Objective(
        build_loss(EngineSettings.of(config)), class_weights(specialties, N_CLASSES), None, config.train.loss_scale
    )


def measure_heads(options: Options, rows: Rows) -> None:
    """Fit four heads to all labels and to the training part of each of five folds, on the card and on the CPU.

    The CPU takes no part in the largest problem, because the lease of a card is short. A small problem shows from which
    size on the card is faster.
    """
    n_features = options.size(1280, 64)
    if options.is_cuda:
        fit_with_folds(options.size(1_000, 50), n_features, options.device)  # loads the libraries of the card
    for labels, seconds, has_cpu in ((500, None, True), (2_000, None, True), (5_000, 2, True), (50_000, 20, False)):
        n = options.size(labels, labels // 10 if labels < 5_000 else 400)
        item = f"heads, {n:,} labels × {n_features:,}"
        devices = [*([torch.device("cpu")] if has_cpu else []), *([options.device] if options.is_cuda else [])]
        for device in devices:
            with rows.guarded(item):
                took, note = fit_with_folds(n, n_features, device)
                wanted = None if seconds is None or device.type == "cpu" else seconds
                verdict = "" if wanted is None else f"; target {wanted} s: {'met' if took <= wanted else 'missed'}"
                rows.add(item, f"4 heads and 5 folds on {device.type}", took, "s", note + verdict)
        if not options.is_cuda:
            rows.add(item, "4 heads and 5 folds on cuda", None, "s", "no card here")


def fit_with_folds(n: int, n_features: int, device: torch.device) -> tuple[float, str]:
    """Return the seconds of all fits to features with ten clusters, whose variance falls as a trunk's, and a note."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, N_CLASSES, (n,), generator=generator)
    spread = torch.arange(1, n_features + 1) ** -0.5
    centers = torch.randn(N_CLASSES, n_features, generator=generator)
    features = (torch.randn(n, n_features, generator=generator) + 0.35 * centers[targets]) * spread
    recipe, objective = HeadRecipe(HEAD_STEPS, HEAD_DECAY, HEAD_PRIOR, "mean"), make_objective()
    folds = draw_folds(targets.numpy(), 0, N_FOLDS)
    synchronize(device)
    started = time.perf_counter()
    fits = HeadFits(features.to(device), targets.to(device), N_CLASSES)
    whole, history = fits.fit(N_HEADS, objective, recipe, torch.Generator().manual_seed(1))
    synchronize(device)
    once = time.perf_counter() - started
    for rest, _ in folds:
        fits.fit(N_HEADS, objective, recipe, torch.Generator().manual_seed(1), rest, whole)
    synchronize(device)
    note = f"{once:.2g} s for all labels, {history['evaluations']} evaluations, loss {history['loss_after']:.6f}"
    return time.perf_counter() - started, note


if __name__ == "__main__":
    main()
