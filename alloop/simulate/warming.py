"""Features before a comparison: computed once, so that no cell waits for a trunk, and timed apart."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from alloop.config.schema import Config
from alloop.engine.build import build_backbone, build_hardware, search_paths
from alloop.engine.features import ensure_features, trunk_batches
from alloop.engine.settings import EngineSettings
from alloop.errors import PoolError
from alloop.files import write_json
from alloop.models.backbones import Backbone
from alloop.progress import Progress
from alloop.records import ImageRef

_TIMED = 128  # number of images that a trunk is timed on


def compute_features(
    config: Config, images: Sequence[ImageRef], cache: Path, device: str | None, progress: Progress
) -> Backbone:
    """Compute the features that the cache lacks, and return the trunk.

    Raises:
        PoolError: An image cannot be read.
        ModelError: The trunk or its weights are not available.
    """
    engine = EngineSettings.of(config)
    hardware = build_hardware(engine, device)
    backbone = build_backbone(engine, search_paths(cache)).in_precision(hardware.precision)
    _, failed = ensure_features(images, backbone, cache, hardware, progress)
    refuse_failed(failed, images)
    return backbone


def time_trunk(backbone: Backbone, config: Config, images: Sequence[ImageRef], device: str | None, note: Path) -> float:
    """Return the seconds that reading and running a trunk take for one image, without worker processes.

    Args:
        backbone: Trunk to time on the first images.
        config: Settings of the hardware.
        images: Labeled images.
        device: Device instead of `[model] device`.
        note: JSON file that keeps the result. If it is missing, damaged or of another trunk, the trunk is timed.
    """
    digest = digest_of_trunk(backbone)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text())
        if known["backbone"] == digest:
            return float(known["seconds_per_image"])
    alone = dataclasses.replace(build_hardware(EngineSettings.of(config), device), workers=0)
    sample = images[:_TIMED]
    started = time.perf_counter()
    for _ in trunk_batches(sample, backbone, alone):
        pass
    seconds = (time.perf_counter() - started) / len(sample)
    write_json(note, {"backbone": digest, "seconds_per_image": seconds, "n_images": len(sample)})
    return seconds


def digest_of_trunk(backbone: Backbone) -> str:
    """Return the SHA-256 of everything that features of the trunk depend on, 64 hex digits."""
    return hashlib.sha256(repr(sorted(backbone.fingerprint().items())).encode()).hexdigest()


def refuse_failed(failed: Sequence[tuple[int, str]], images: Sequence[ImageRef]) -> None:
    """Refuse images that could not be read.

    Raises:
        PoolError: There is one.
    """
    if failed:
        image_id, reason = failed[0]
        path = next(image.path for image in images if image.image_id == image_id)
        raise PoolError(
            f"{len({image_id for image_id, _ in failed})} images cannot be read, for example {path}: {reason}.",
            "Repair or remove them: all methods must see the same images.",
        )
