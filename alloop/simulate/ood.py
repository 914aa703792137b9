"""How well a trained model's scores tell strange images from those it knows: every score × every metric."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alloop.engine.build import build_backbone, build_hardware, search_paths
from alloop.engine.features import Failed, ensure_features
from alloop.engine.finetune import trunk_features
from alloop.engine.head_passes import HeadPasses
from alloop.engine.jobs import ScoreJob
from alloop.engine.model_files import ModelVersion, load_model
from alloop.engine.odin import Odin
from alloop.errors import LabelError, ModelError, PoolError
from alloop.evaluation import ood
from alloop.evaluation.ood_metrics import measure_ood, ood_intervals
from alloop.pool.depth import with_own_depth
from alloop.pool.sources import content_hash, expand
from alloop.progress import Progress, silent
from alloop.records import ImageRef
from alloop.seeds import derive_seed

N_BINS = 30


@dataclasses.dataclass(frozen=True)
class OodScore:
    """One score on images inside and outside of the distribution.

    Attributes:
        metrics: As in `evaluation.ood_metrics.OodMetrics`, out of distribution being the positive class.
        intervals: 95 % of each, bootstrapped over images: name → (low, high).
        edges: [N_BINS + 1] of the histograms.
        inside, outside: Images in each bin.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    edges: tuple[float, ...]
    inside: tuple[int, ...]
    outside: tuple[int, ...]


def read_strangers(
    folder: Path, known: Sequence[ImageRef], progress: Progress = silent, *, may_be_cut: bool = False
) -> tuple[ImageRef, ...]:
    """Return all images below a folder, each content once and at its own depth. Ids continue after the known images'.

    Args:
        folder: The folder.
        known: Images that show the classes.
        progress: Told how many files were read.
        may_be_cut: Take files that end too early.

    Raises:
        LabelError: There are none; or one of them is also among the labeled images.
    """
    files = list(expand([str(folder)]))
    found: dict[str, str] = {}
    for number, file in enumerate(files, start=1):
        progress("read strange images", number, len(files))
        found.setdefault(content_hash(file), file)
    both = [image for image in known if image.sha256 in found]
    if not found or both:
        what = f"holds {found[both[0].sha256]}, which is also labeled" if both else "holds no images"
        raise LabelError(f"{folder} {what}.", "Name a folder of images that show none of the classes.")
    first = max((image.image_id for image in known), default=0) + 1
    return with_own_depth([ImageRef(first + n, *pair, is_admitted=may_be_cut) for n, pair in enumerate(found.items())])


def measure_strangers(
    job: ScoreJob, inside: Sequence[ImageRef], outside: Sequence[ImageRef], seed: int, odin_images: int, draws: int
) -> dict[str, OodScore]:
    """Every score that the model has: MSP, entropy, GEN, max logit, energy, GradNorm, with members mutual information.

    And ODIN, unless dropout masks are drawn anew for every image.

    Args:
        job: Says which model, cache and device; its images and file are not used.
        inside: Images like those it was trained on, but not these.
        outside: Others.
        seed: Of the bootstrap, and of which images ODIN gets.
        odin_images: At most so many of each side get ODIN's score, drawn at random; 0: it is left out.
        draws: Of the bootstrap.

    Raises:
        ModelError: A score is the same for all images.
        PoolError: An image cannot be read.
    """
    version = load_model(job.model)
    passes = HeadPasses(version.as_trained(job.config), int(version.metadata["seed"]))
    lengths, logits, log_probs = _outputs(job, version, passes, [*inside, *outside])
    scores = {
        "MSP": ood.msp(log_probs),
        "entropy": ood.entropy(log_probs),
        "GEN": ood.gen(log_probs),
        "max logit": ood.max_logit(logits),
        "energy": ood.energy(logits),
        "GradNorm": ood.gradnorm(lengths.unsqueeze(-1), logits),
    }
    if len(log_probs) > 1:
        scores["mutual information"] = ood.mutual_information(log_probs)
    n = len(inside)
    found = {name: _measured(name, values[:n], values[n:], seed, draws) for name, values in scores.items()}
    if odin_images and passes.is_repeatable:
        generator = np.random.default_rng(derive_seed(seed, "odin"))
        of_each = [
            _odin(job, version, passes, [images[p] for p in generator.permutation(len(images))[:odin_images]])
            for images in (inside, outside)
        ]
        found["ODIN"] = _measured("ODIN", of_each[0], of_each[1], seed, draws)
    return found


def _odin(job: ScoreJob, version: ModelVersion, passes: HeadPasses, images: Sequence[ImageRef]) -> Tensor:
    scores, _, failed = Odin(job, version, passes).score(images)
    _refuse_failed(failed, images)
    return scores


def _measured(name: str, inner: Tensor, outer: Tensor, seed: int, draws: int) -> OodScore:
    inside, outside = inner.double().numpy(), outer.double().numpy()
    both = np.concatenate([inside, outside])
    try:
        ood.check_varies(torch.from_numpy(both), name)
    except ValueError as error:
        raise ModelError(
            f"Strange images cannot be told from others: {error}.", "The training may have failed."
        ) from error
    edges = np.histogram_bin_edges(both, bins=N_BINS)
    generator = np.random.default_rng(derive_seed(seed, "bootstrap", name))
    intervals = ood_intervals(inside, outside, generator, draws)
    return OodScore(
        metrics=dataclasses.asdict(measure_ood(inside, outside)),
        intervals={metric: (interval.low, interval.high) for metric, interval in intervals.items()},
        edges=tuple(edges.tolist()),
        inside=tuple(np.histogram(inside, edges)[0].tolist()),
        outside=tuple(np.histogram(outside, edges)[0].tolist()),
    )


def _outputs(
    job: ScoreJob, version: ModelVersion, passes: HeadPasses, images: Sequence[ImageRef]
) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of what the last layers saw [M, N], what they gave [M, N, K], and log-softmax of that [M, N, K]."""
    lengths, logits = [], []
    for number in range(len(version.files)):
        network = version.load_network(number)
        rows = _features(job, images, network.trunk)
        logits.append(passes.logits(network.heads, rows, [image.sha256 for image in images]))
        lengths.append(passes.lengths(network.heads, rows))
    raw = torch.cat(logits)
    # Raw logits: LogitNorm predicts from normalized ones, whose norm says nothing (docs/methods.md section 5.8).
    return torch.cat(lengths), raw, raw.log_softmax(dim=-1)


def _features(job: ScoreJob, images: Sequence[ImageRef], trunk: Mapping[str, Tensor]) -> Tensor:
    backbone = build_backbone(job.config, search_paths(job.cache))
    hardware = build_hardware(job.config, job.device)
    if trunk:
        backbone.module.load_state_dict(dict(trunk))
        rows, _, failed = trunk_features(backbone, images, hardware)
    else:
        cache, failed = ensure_features(images, backbone, job.cache, hardware)
        gone = {image_id for image_id, _ in failed}
        rows = torch.from_numpy(cache.take([image.key for image in images if image.image_id not in gone]))
    _refuse_failed(failed, images)
    return rows


def _refuse_failed(failed: Failed, images: Sequence[ImageRef]) -> None:
    if failed:
        path = next(image.path for image in images if image.image_id == failed[0][0])
        raise PoolError(
            f"{len(failed)} images cannot be read, for example {path}: {failed[0][1]}.", "Mend or remove them."
        )
