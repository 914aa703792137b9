"""Features of images by a trunk. Those of a published trunk are cached in pieces, so that a stopped run continues."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from alloop.engine.build import Hardware, build_backbone, build_hardware, search_paths
from alloop.engine.device import explained_shortage, full_float32, in_halves
from alloop.engine.jobs import FeatureJob, FeatureResult
from alloop.errors import ModelError
from alloop.models.backbones import Backbone
from alloop.models.given import Given
from alloop.models.side_by_side import join_blocks
from alloop.pool.cache import FeatureCache
from alloop.pool.dataset import ImageBatch, ImageDataset, collate
from alloop.progress import Progress, silent
from alloop.records import ImageRef

Failed = tuple[tuple[int, str], ...]  # image ids that could not be read now, and why

SHARD_ROWS = 8192  # most features that wait in memory before they are written
SHARD_SECONDS = 30.0  # longest wait: the work that a killed run has to do again


class CachedFeatures(Protocol):
    """Features on disk, by `ImageRef.key`."""

    def missing(self, keys: Sequence[str], /) -> list[str]:
        """Return the keys without features, each once."""
        ...

    def take(self, keys: Sequence[str], /) -> npt.NDArray[np.float32]:
        """Return features [n, D] in the order given; keys may repeat."""
        ...


@explained_shortage()
def run_features(job: FeatureJob, progress: Progress = silent) -> FeatureResult:
    """Return features of images, computed if the cache lacks them. The memory is that of the result."""
    hardware = build_hardware(job.settings, job.device)
    backbone = build_backbone(job.settings, search_paths(job.cache))
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


def ensure_features(
    images: Sequence[ImageRef], backbone: Backbone, cache: Path, hardware: Hardware, progress: Progress = silent
) -> tuple[CachedFeatures, Failed]:
    """Compute the features that the cache does not have yet.

    Features are written every half minute and at an interruption. An interrupted run continues where it stopped.
    Of trunks side by side, each has the cache that it has alone, so only what none has computed before is computed.

    Returns:
        The cached features, and the images that they still lack, because they could not be read.

    Raises:
        ModelError: Features were given instead of a trunk, but not for all images.
    """
    if backbone.parts:
        return _of_parts(images, backbone, cache, hardware, progress)
    features = _open_one(cache, backbone, backbone.fingerprint())
    lacking = set(features.missing([image.key for image in images]))
    todo = {image.key: image for image in images if image.key in lacking}
    if todo and isinstance(backbone.module, Given):
        raise ModelError(
            f"{len(todo)} of {len(images)} images have no features in {features.folder}, and no trunk computes them.",
            "Give the features again.",
        )
    failed: dict[str, str] = {}
    with Shards(features) as shards:
        for done, refs, batch, rows in trunk_batches(list(todo.values()), backbone, hardware):
            shards.add([refs[position].key for position in batch.positions.tolist()], rows)
            reasons = dict(batch.failed)
            failed |= {ref.key: reasons[ref.image_id] for ref in refs.values() if ref.image_id in reasons}
            progress("features", done, len(todo))
    return features, tuple((image.image_id, failed[image.key]) for image in images if image.key in failed)


def open_features(cache: Path, backbone: Backbone, fingerprint: Mapping[str, Any]) -> CachedFeatures:
    """Open the features that the cache has. The fingerprint is that of the backbone; making it takes a while."""
    if not backbone.parts:
        return _open_one(cache, backbone, fingerprint)
    pairs = zip(backbone.parts, fingerprint["side_by_side"], strict=True)
    return _Joined([open_features(cache, part, its) for part, its in pairs], backbone.n_features)


def _open_one(cache: Path, backbone: Backbone, fingerprint: Mapping[str, Any]) -> FeatureCache:
    return FeatureCache(cache / "features", fingerprint, backbone.n_features)


def _of_parts(
    images: Sequence[ImageRef], backbone: Backbone, cache: Path, hardware: Hardware, progress: Progress
) -> tuple[CachedFeatures, Failed]:
    blocks: list[CachedFeatures] = []
    failed: dict[int, str] = {}
    for part in backbone.parts:
        readable = [image for image in images if image.image_id not in failed]
        block, unread = ensure_features(readable, part, cache, hardware, progress)
        blocks.append(block)
        failed |= dict(unread)
    return _Joined(blocks, backbone.n_features), tuple(failed.items())


def look_up_features(
    images: Sequence[ImageRef],
    cache: CachedFeatures,
    backbone: Backbone,
    hardware: Hardware,
    say: Callable[[int], None],
) -> tuple[Tensor, list[int], Failed]:
    """Features [N, D] of the images that could be read, from the cache or computed now, and nothing is added to it.

    Returns:
        The features, the positions of their images, ascending, and the images that could not be read, with the reasons.
        `say` receives the number of images done.

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
    for done, _, batch, rows in trunk_batches([images[position] for position in todo], backbone, hardware):
        places += [todo[position] for position in batch.positions.tolist()]
        failed += batch.failed
        parts.append(rows)
        say(len(known) + done)
    order = sorted(range(len(places)), key=places.__getitem__)
    return torch.cat(parts)[order], [places[row] for row in order], tuple(failed)


def depth_of_all(images: Sequence[ImageRef]) -> int | None:
    """Depth in bits at which images with more than 8 bits a channel are read; None without such images."""
    return max((image.depth for image in images if image.depth is not None), default=None)


def trunk_batches(
    images: Sequence[ImageRef], backbone: Backbone, hardware: Hardware
) -> Iterator[tuple[int, dict[int, ImageRef], ImageBatch, Tensor]]:
    """Run images through the trunk, in the order given; memory is O(batch).

    Yields:
        The number of images done, the images of the batch by position, the batch, and the features [B, D] of the
        images that could be read.
    """
    trunk = backbone.module.to(hardware.device)
    done = 0
    for batch in load_batches(images, backbone, hardware):
        n = len(batch.positions) + len(batch.failed)
        refs = {position: images[position] for position in range(done, done + n)}
        done += n
        readable = len(batch.positions) > 0
        rows = run_trunk(trunk, backbone, batch.images, hardware) if readable else torch.empty(0, backbone.n_features)
        yield done, refs, batch, rows


def trunk_features(
    backbone: Backbone, images: Sequence[ImageRef], hardware: Hardware
) -> tuple[Tensor, list[int], Failed]:
    """Features [N, D] of the images that could be read, their positions, and those that could not."""
    backbone.module.eval()
    rows = [torch.empty(0, backbone.n_features)]
    positions: list[int] = []
    failed: list[tuple[int, str]] = []
    for _, _, batch, features in trunk_batches(images, backbone, hardware):
        failed += batch.failed
        positions += batch.positions.tolist()
        rows.append(features)
    return torch.cat(rows), positions, tuple(failed)


def load_batches(images: Sequence[ImageRef], backbone: Backbone, hardware: Hardware) -> Iterator[ImageBatch]:
    """Decode images at the size of the trunk, uint8 [B, 3, S, S], in the order given."""
    look = backbone.without_weights()  # what worker processes get
    workers = hardware.workers if len(images) > 4 * hardware.batch_size else 0  # starting processes takes a while
    dataset = ImageDataset(images, look.preprocess)
    yield from DataLoader(dataset, batch_size=hardware.batch_size, num_workers=workers, collate_fn=collate)


def run_trunk(trunk: nn.Module, backbone: Backbone, images: Tensor, hardware: Hardware) -> Tensor:
    """Run images uint8 [B, 3, S, S] through a trunk in eval mode. Features [B, D] are full float32, on the CPU.

    Raises:
        ModelError: The trunk gives another shape, or numbers that are not finite.
    """

    def run(part: Tensor) -> Tensor:
        with torch.inference_mode(), full_float32():
            output: Tensor = trunk(backbone.normalize(part.to(hardware.device)))
            return output.float().cpu()

    features = in_halves(run, images)
    if features.shape != (len(images), backbone.n_features):
        raise ModelError(
            f"The backbone gave {list(features.shape)} for {len(images)} images.",
            f"It must give features [B, {backbone.n_features}].",
        )
    if not bool(torch.isfinite(features).all()):
        raise ModelError("The backbone gave features that are not finite.", "Check its weights.")
    return features


class _Joined:
    """Features of trunks side by side, joined when they are read."""

    def __init__(self, blocks: Sequence[CachedFeatures], n_features: int) -> None:
        self._blocks, self._n_features = blocks, n_features

    def missing(self, keys: Sequence[str], /) -> list[str]:
        lacking = {key for block in self._blocks for key in block.missing(keys)}
        return list(dict.fromkeys(key for key in keys if key in lacking))

    def take(self, keys: Sequence[str], /) -> npt.NDArray[np.float32]:
        rows = np.empty((len(keys), self._n_features), dtype=np.float32)
        for start in range(0, len(keys), SHARD_ROWS):  # so that only the result is in memory
            part = keys[start : start + SHARD_ROWS]
            blocks = [torch.from_numpy(block.take(part)) for block in self._blocks]
            rows[start : start + SHARD_ROWS] = join_blocks(blocks).numpy()
        return rows


class Shards:
    """Collect rows for a cache, and write them when they are worth a shard.

    The rest is written at the end, even after an error.
    """

    def __init__(self, cache: FeatureCache) -> None:
        self._cache = cache
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._since = time.monotonic()

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def add(self, keys: Sequence[str], rows: Tensor) -> None:
        self._names += keys
        self._rows.append(rows)
        if len(self._names) >= SHARD_ROWS or time.monotonic() - self._since > SHARD_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._names:
            self._cache.add(self._names, torch.cat(self._rows).numpy())
        self._names, self._rows, self._since = [], [], time.monotonic()
