"""Score images with a model version, streamed to a columnar file."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from alloop.config.schema import ModelConfig
from alloop.engine.build import Hardware, build_backbone, build_hardware, search_paths
from alloop.engine.calibrate import apply_calibration
from alloop.engine.device import explained_shortage
from alloop.engine.features import depth_of_all, ensure_features, trunk_batches
from alloop.engine.finetune import trunk_features
from alloop.engine.head_passes import HeadPasses
from alloop.engine.jobs import ScoreJob, ScoreResult
from alloop.engine.model_files import ModelVersion, load_model
from alloop.engine.odin import Odin
from alloop.engine.ood_score import ood_score
from alloop.engine.score_file import ScoreWriter
from alloop.engine.trunk_file import TrunkWriter
from alloop.errors import ModelError
from alloop.files import atomic_path, sha256_of
from alloop.models.backbones import Backbone
from alloop.predictive import mean_log_probs
from alloop.progress import Progress, silent
from alloop.records import ImageRef

CHUNK = 4096  # images whose features are in memory at once
BLOCK = 8192  # images that one network of an ensemble goes through before the next one is loaded
LOGITS = 50_000_000  # of all members, in memory at once


@explained_shortage()
def run_score(job: ScoreJob, progress: Progress = silent) -> ScoreResult:
    """Write calibrated predictions and entropies of images; memory is O(batch).

    Images that cannot be read now are left out of the file and named in the result.

    Raises:
        ModelError: The model version is damaged, or was trained on another backbone.
        WorkspaceError: The disk is full; an earlier file stays as it was.
    """
    started = time.perf_counter()
    version = load_model(job.model)
    passes = HeadPasses(version.as_trained(job.config), int(version.metadata["seed"]))
    failed: list[tuple[int, str]] = []
    name = job.config.acquisition.ood_score
    odin = Odin(job, version, passes) if name == "odin" else None
    with (
        TrunkWriter(job.features_out if version.trunk else None, len(job.images) + len(job.labeled)) as trunk_rows,
        atomic_path(job.out) as temporary,
        ScoreWriter(temporary, version, job.model.sha256, keep_members=job.keep_members) as writer,
    ):
        done = 0
        for images, logits, lengths in _logits(job, version, passes, failed, trunk_rows, progress):
            unlike = None
            if odin is not None:
                unlike, kept, unreadable = odin.score(images, progress)
                failed += unreadable
                images, logits, lengths = [images[place] for place in kept], logits[:, kept], lengths[:, kept]
            members = passes.member_log_probs(logits)
            pooled = mean_log_probs(members)
            final = apply_calibration(version.calibration, pooled) if job.is_calibrated else pooled
            # Under LogitNorm the norm of raw logits tells what is unlike; normalized ones have lost it.
            pooled_raw = mean_log_probs(logits.log_softmax(dim=-1)) if passes.loss.rule.normalizes_logits else final
            if unlike is None:
                unlike = ood_score(name, logits, lengths, members, pooled_raw)
            writer.write(images, final, members, unlike)
            done += len(images)
            progress("score", done, len(job.images) - len(failed))
        if (checksum := trunk_rows.finish()) is not None:
            writer.set_features(checksum)
    return ScoreResult(
        path=job.out,
        sha256=sha256_of(job.out),
        n_images=done,
        seconds=time.perf_counter() - started,
        failed=tuple(failed),
    )


def _logits(
    job: ScoreJob,
    version: ModelVersion,
    passes: HeadPasses,
    failed: list[tuple[int, str]],
    trunk_rows: TrunkWriter,
    progress: Progress,
) -> Iterator[tuple[Sequence[ImageRef], Tensor, Tensor]]:
    """Images, every member's logits [M, B, K] and the lengths of what it saw [M, B], in the job's order.

    What fails is added to `failed`.
    """
    hardware = build_hardware(job.config, job.device)
    backbone = build_backbone(job.config, search_paths(job.cache))
    _check_backbone(job, version, backbone)
    if version.trunk and len(version.files) > 1:
        yield from _of_networks(job, version, passes, backbone, hardware, failed, trunk_rows)
        _keep_labeled(job, version, backbone, hardware, trunk_rows)
    elif version.trunk:
        backbone.module.load_state_dict(dict(version.trunk))
        for _, refs, batch, rows in trunk_batches(job.images, backbone, hardware):
            failed += batch.failed
            read = [refs[position] for position in batch.positions.tolist()]
            logits, lengths = (
                passes.logits(version.heads, rows, _hashes(read)),
                passes.lengths(version.heads, rows),
            )
            trunk_rows.add(read, rows)
            yield read, logits, lengths
        _keep_labeled(job, version, backbone, hardware, trunk_rows)
    else:
        heads = [version.load_network(number).heads for number in range(len(version.files))]
        for images, rows in _cached(job, version, backbone, hardware, failed, progress):
            logits = torch.cat([passes.logits(part, rows, _hashes(images)) for part in heads])
            yield images, logits, torch.cat([passes.lengths(part, rows) for part in heads])


def _cached(
    job: ScoreJob,
    version: ModelVersion,
    backbone: Backbone,
    hardware: Hardware,
    failed: list[tuple[int, str]],
    progress: Progress,
) -> Iterator[tuple[Sequence[ImageRef], Tensor]]:
    """Images and their features [B, D]."""
    cache, unreadable = ensure_features(job.images, backbone, job.cache, hardware, progress)
    failed += unreadable
    gone = {image_id for image_id, _ in failed}
    images = [image for image in job.images if image.image_id not in gone]
    size = _chunk(version, CHUNK)
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        yield chunk, torch.from_numpy(cache.take([image.key for image in chunk]))


def _of_networks(
    job: ScoreJob,
    version: ModelVersion,
    passes: HeadPasses,
    backbone: Backbone,
    hardware: Hardware,
    failed: list[tuple[int, str]],
    trunk_rows: TrunkWriter,
) -> Iterator[tuple[Sequence[ImageRef], Tensor, Tensor]]:
    """Block by block of the pool, one network in memory and on the device at a time."""
    size = _chunk(version, BLOCK)
    for start in range(0, len(job.images), size):
        block = job.images[start : start + size]
        rows: list[dict[int, tuple[Tensor, Tensor]]] = []
        reasons: dict[int, str] = {}
        for number in range(len(version.files)):
            network = version.load_network(number)
            backbone.module.load_state_dict(network.trunk)
            features, positions, unreadable = trunk_features(backbone, block, hardware)
            if number == 0:
                trunk_rows.add([block[position] for position in positions], features)
            read = _hashes([block[position] for position in positions])
            logits = passes.logits(network.heads, features, read)
            lengths = passes.lengths(network.heads, features)
            rows.append({position: (logits[:, n], lengths[:, n]) for n, position in enumerate(positions)})
            reasons |= dict(unreadable)
        failed += reasons.items()
        kept = [position for position, image in enumerate(block) if image.image_id not in reasons]
        if kept:
            logits, lengths = (
                torch.cat([torch.stack([network[position][part] for position in kept], dim=1) for network in rows])
                for part in (0, 1)
            )
            yield [block[position] for position in kept], logits, lengths


def _hashes(images: Sequence[ImageRef]) -> list[str]:
    return [image.sha256 for image in images]


def _keep_labeled(
    job: ScoreJob, version: ModelVersion, backbone: Backbone, hardware: Hardware, trunk_rows: TrunkWriter
) -> None:
    """Features of the labeled images, by the first network's trunk; those that cannot be read now are left out."""
    if not trunk_rows.is_open:
        return
    backbone.module.load_state_dict(dict(version.trunk))
    for _, refs, batch, rows in trunk_batches(job.labeled, backbone, hardware):
        trunk_rows.add([refs[position] for position in batch.positions.tolist()], rows)


def _chunk(version: ModelVersion, most: int) -> int:
    """Images whose logits are in memory at once."""
    model = ModelConfig.model_validate(version.metadata["config"]["model"])
    n_values = model.n_members * len(version.classes)
    return min(most, max(64, LOGITS // n_values))


def _check_backbone(job: ScoreJob, version: ModelVersion, backbone: Backbone) -> None:
    trained_on, now = dict(version.metadata["backbone"]), backbone.fingerprint()
    if version.trunk:  # its own weights replace those that the name stands for
        del trained_on["weights"], now["weights"]
    if trained_on != now:
        raise ModelError(
            f"The model in {job.model.folder} was trained on another backbone, other weights or another image size.",
            "Train it again with `alloop train`.",
        )
    depth = version.metadata.get("depth"), depth_of_all(job.images)
    if None not in depth and depth[0] != depth[1]:
        raise ModelError(
            f"The model in {job.model.folder} was trained on images read with {depth[0]} bits, but the pool's images "
            f"are now read with {depth[1]} bits.",
            "Train it again with `alloop train`.",
        )
