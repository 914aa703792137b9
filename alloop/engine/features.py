"""Features of images by a trunk. Those of a published trunk are cached in pieces, so that a stopped run continues."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from alloop.engine.build import Hardware, build_backbone, build_hardware, search_paths
from alloop.engine.cached_features import CachedFeatures, Joined, open_alone
from alloop.engine.device import explained_shortage
from alloop.engine.jobs import FeatureJob, FeatureResult
from alloop.engine.onnx_trunk import prepare_with_onnx
from alloop.engine.trunk_passes import Failed as Failed
from alloop.engine.trunk_passes import Passed, Prepare, Trunk, pass_trunks, prepare_trunk
from alloop.errors import ModelError
from alloop.models.backbones import Backbone, side_by_side
from alloop.models.given import Given
from alloop.models.side_by_side import join_blocks
from alloop.pool.cache import FeatureCache
from alloop.pool.dataset import ImageBatch, ImageDataset, collate
from alloop.progress import Progress, silent
from alloop.records import ImageRef, Precision

log = logging.getLogger(__name__)

SHARD_ROWS = 8192  # most features that wait in memory before they are written
PIECE = 32  # images that a worker process hands over together
AHEAD = 4  # pieces that every worker process decodes ahead
SHARD_SECONDS = 30.0  # longest wait: the work that a killed run has to do again


@explained_shortage()
def run_features(job: FeatureJob, progress: Progress = silent) -> FeatureResult:
    """Return features of images, computed if the cache lacks them. The memory is that of the result."""
    hardware = build_hardware(job.settings, job.device)
    backbone = build_backbone(job.settings, search_paths(job.cache)).in_precision(hardware.precision)
    cache, failed = ensure_features(job.images, backbone, job.cache, hardware, progress)
    gone = {image_id for image_id, _ in failed}
    there = [image for image in job.images if image.image_id not in gone]
    return FeatureResult(
        image_ids=np.array([image.image_id for image in there], dtype=np.int64),
        features=cache.take([image.key for image in there]),
        failed=failed,
    )


def count_features(job: FeatureJob) -> int:
    """Return the number of features D without computing any."""
    return build_backbone(job.settings, search_paths(job.cache)).n_features


class Preparation:
    """Brings published trunks to the device. A trunk that ONNX Runtime runs is opened and compared with PyTorch once.

    The weights of the trunks must stay as they are.
    """

    def __init__(self, hardware: Hardware, cache: Path) -> None:
        """`cache` is the folder of all feature caches."""
        self._has_onnx, self._folder = hardware.has_onnx, cache / "trunks"
        self._opened: dict[nn.Module, Trunk] = {}

    def of(self, n_images: int) -> Prepare:
        """Return the function that prepares a trunk for a number of images."""
        return functools.partial(self._prepare, n_images=n_images) if self._has_onnx else prepare_trunk

    def _prepare(self, backbone: Backbone, device: torch.device, n_images: int) -> Trunk:
        if backbone.module in self._opened:
            return self._opened[backbone.module]
        trunk = prepare_with_onnx(backbone, device, self._folder, n_images)
        if trunk.module is not backbone.module:
            self._opened[backbone.module] = trunk
        return trunk


def ensure_features(
    images: Sequence[ImageRef], backbone: Backbone, cache: Path, hardware: Hardware, progress: Progress = silent
) -> tuple[CachedFeatures, Failed]:
    """Compute the features that the cache does not have yet.

    Features are written every half minute and at an interruption. An interrupted run continues where it stopped.
    Of trunks side by side, each has the cache that it has alone, so only what none has computed before is computed.
    An image is decoded once for all trunks that lack it.

    Returns:
        The cached features, and the images that they still lack, because they could not be read.

    Raises:
        ModelError: Features were given instead of a trunk, but not for all images.
    """
    parts = backbone.alone
    blocks = [open_alone(cache, part.fingerprint()) for part in parts]
    todo = _lacking(images, blocks)
    if todo and isinstance(backbone.module, Given):
        n_todo = sum(map(len, todo.values()))
        raise ModelError(
            f"{n_todo} of {len(images)} images have no features in {blocks[0].folder}, and no trunk computes them.",
            "Give the features again.",
        )
    _say_computed_again(todo, parts, blocks)
    failed, preparation = dict[str, str](), Preparation(hardware, cache)
    done, total = 0, sum(map(len, todo.values()))
    for wanted, refs in todo.items():
        used = [parts[number] for number in wanted]
        with contextlib.ExitStack() as stack:
            shards = [stack.enter_context(Shards(blocks[number])) for number in wanted]
            batches, prepare = _load(refs, side_by_side(used), hardware), preparation.of(len(refs))
            for passed in pass_trunks(batches, used, hardware, prepare=prepare):
                for each, rows in zip(shards, passed.rows, strict=True):
                    each.add([refs[position].key for position in passed.positions], rows)
                reasons = dict(passed.failed)
                failed |= {ref.key: reasons[ref.image_id] for ref in refs if ref.image_id in reasons}
                progress("features", done + passed.done, total)
        done += len(refs)
    found = Joined(blocks) if backbone.parts else blocks[0]
    return found, tuple((image.image_id, failed[image.key]) for image in images if image.key in failed)


def _lacking(images: Sequence[ImageRef], blocks: Sequence[FeatureCache]) -> dict[tuple[int, ...], list[ImageRef]]:
    """Return the images that some caches lack, each content once, by the numbers of these caches."""
    lacking = [set(block.missing([image.key for image in images])) for block in blocks]
    todo: dict[tuple[int, ...], list[ImageRef]] = {}
    for key, image in {image.key: image for image in images}.items():
        wanted = tuple(number for number, keys in enumerate(lacking) if key in keys)
        if wanted:
            todo.setdefault(wanted, []).append(image)
    return todo


def _say_computed_again(
    todo: Mapping[tuple[int, ...], list[ImageRef]], parts: Sequence[Backbone], blocks: Sequence[FeatureCache]
) -> None:
    """Warn if the cache has the features in another precision, or of other pixels of the same images."""
    for number, (part, block) in enumerate(zip(parts, blocks, strict=True)):
        keys = [image.key for wanted, refs in todo.items() if number in wanted for image in refs]
        if n_known := block.n_known_otherwise(keys, "precision"):
            other: Precision = "float32" if part.precision == "bfloat16" else "bfloat16"
            log.warning(
                "%d features are computed again: the cache has them in %s, and here they are %s ([model] precision).",
                n_known,
                other,
                part.precision,
            )
        elif n_known := block.n_known_otherwise(keys, "pixels", "precision"):
            log.warning(
                "%d features are computed again: this version of alloop reads and resizes images in another way.",
                n_known,
            )


def look_up_features(
    images: Sequence[ImageRef],
    cache: CachedFeatures,
    backbone: Backbone,
    hardware: Hardware,
    preparation: Preparation,
    say: Callable[[int], None],
) -> tuple[Tensor, list[int], Failed]:
    """Features [N, D] of the images that could be read, from the cache or computed now, and none is added to it.

    Args:
        images: The images.
        cache: Cached features.
        backbone: Trunk of the features that the cache lacks.
        hardware: Place and manner in which it runs.
        preparation: Brings the trunk to its device.
        say: Function that receives the number of images done.

    Returns:
        The features, the positions of their images, ascending, and the images that could not be read, with the reasons.

    Raises:
        ModelError: Features were given instead of a trunk, but not for all images.
    """
    lacking = set(cache.missing([image.key for image in images]))
    todo = [position for position, image in enumerate(images) if image.key in lacking]
    known = [position for position, image in enumerate(images) if image.key not in lacking]
    if todo and isinstance(backbone.module, Given):
        raise ModelError(
            f"{len(todo)} of {len(images)} images have no features, and no trunk computes them.",
            "A model of given features predicts images of its pool only.",
        )
    parts = [torch.from_numpy(cache.take([images[position].key for position in known]))]
    places, failed = list(known), list[tuple[int, str]]()
    wanted = [images[position] for position in todo]
    for passed in trunk_batches(wanted, backbone, hardware, preparation.of(len(todo))):
        places += [todo[position] for position in passed.positions]
        failed += passed.failed
        parts.append(features_of(passed))
        say(len(known) + passed.done)
    order = sorted(range(len(places)), key=places.__getitem__)
    return torch.cat(parts)[order], [places[row] for row in order], tuple(failed)


def depth_of_all(images: Sequence[ImageRef]) -> int | None:
    """Depth in bits at which images with more than 8 bits a channel are read; None without such images."""
    return max((image.depth for image in images if image.depth is not None), default=None)


def trunk_batches(
    images: Sequence[ImageRef], backbone: Backbone, hardware: Hardware, prepare: Prepare = prepare_trunk
) -> Iterator[Passed]:
    """Run images through the trunk, or its trunks side by side, in the order given. Memory is O(block)."""
    yield from pass_trunks(_load(images, backbone, hardware), backbone.alone, hardware, prepare=prepare)


def features_of(passed: Passed) -> Tensor:
    """Return the features [B, D] of a block: those of the trunk, or of all trunks side by side."""
    return passed.rows[0] if len(passed.rows) == 1 else join_blocks(passed.rows)


def trunk_features(
    backbone: Backbone, images: Sequence[ImageRef], hardware: Hardware
) -> tuple[Tensor, list[int], Failed]:
    """Features [N, D] of the images that could be read, their positions, and those that could not."""
    backbone.module.eval()
    rows = [torch.empty(0, backbone.n_features)]
    positions: list[int] = []
    failed: list[tuple[int, str]] = []
    for passed in trunk_batches(images, backbone, hardware):
        failed += passed.failed
        positions += passed.positions
        rows.append(features_of(passed))
    return torch.cat(rows), positions, tuple(failed)


def load_batches(images: Sequence[ImageRef], backbone: Backbone, hardware: Hardware) -> Iterator[ImageBatch]:
    """Decode images at the size of the trunk, uint8 [B, 3, S, S], in the order given."""
    yield from _load(images, backbone, hardware, hardware.batch_size)


def _load(
    images: Sequence[ImageRef], backbone: Backbone, hardware: Hardware, batch_size: int | None = None
) -> Iterator[ImageBatch]:
    """Decode images, by default in batches small enough to travel between processes, which a card joins."""
    is_card = hardware.device.type == "cuda"
    size = batch_size or travel_size(hardware)
    workers = hardware.workers if len(images) > 4 * min(size, PIECE) else 0  # starting processes takes a while
    yield from DataLoader(
        ImageDataset(images, backbone.without_weights().preprocess),  # what worker processes get
        batch_size=size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=is_card,
        prefetch_factor=AHEAD if workers else None,
    )


def travel_size(hardware: Hardware) -> int:
    """Return the number of images that travel together: on a card a divisor of the batch, which keeps its size."""
    divisor = math.gcd(hardware.batch_size, PIECE)
    return divisor if hardware.device.type == "cuda" and divisor >= 8 else hardware.batch_size


class Shards:
    """Collect rows, and write them when they are worth a shard, while the next ones are computed.

    The rest is written at the end, even after an error.
    """

    def __init__(self, cache: FeatureCache) -> None:
        self._cache = cache
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._since = time.monotonic()
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._written: Future[None] | None = None

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        with self._writer:
            self._flush()
            self._wait()

    def add(self, keys: Sequence[str], rows: Tensor) -> None:
        self._names += keys
        self._rows.append(rows)
        if len(self._names) >= SHARD_ROWS or time.monotonic() - self._since > SHARD_SECONDS:
            self._flush()

    def _flush(self) -> None:
        self._wait()
        if self._names:
            self._written = self._writer.submit(self._cache.add, self._names, torch.cat(self._rows).numpy())
        self._names, self._rows, self._since = [], [], time.monotonic()

    def _wait(self) -> None:
        """Wait for the shard that is being written, and raise its error. Calls of a cache must not overlap."""
        if self._written is not None:
            self._written.result()
        self._written = None
