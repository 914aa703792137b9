"""Detection of strange images by a trained model: every score × every metric."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alloop.composition import OOD_SCORES
from alloop.engine.classifier import Classifier
from alloop.engine.features import Failed
from alloop.engine.ood_score import SCORES, ModelOutputs, ood_score
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
    """Result of one score on images in and out of distribution.

    Attributes:
        metrics: Metrics of `evaluation.ood_metrics.OodMetrics`; out of distribution is the positive class.
        intervals: 95 % bootstrap interval of each: name → (low, high).
        edges: Edges of the histograms [N_BINS + 1].
        inside, outside: Number of images in each bin.
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
        folder: Folder to read.
        known: Images that show the classes.
        progress: Function that receives the number of files read.
        may_be_cut: True to accept incomplete files.

    Raises:
        LabelError: There are no images, or one of them is also among the labeled images.
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
    model: Classifier,
    inside: Sequence[ImageRef],
    outside: Sequence[ImageRef],
    seed: int,
    odin_images: int,
    draws: int,
) -> dict[str, OodScore]:
    """Measure every OOD score that the model has: MSP, entropy, GEN, max logit, energy and GradNorm.

    Mutual information is added for several members, and ODIN unless dropout masks are drawn for every image.

    Args:
        model: The model.
        inside: Images like those that the model was trained on, but not the same images.
        outside: Images of other things.
        seed: Seed of the bootstrap and of the draw of images for ODIN.
        odin_images: Largest number of images of each kind for ODIN, drawn at random; 0: without ODIN.
        draws: Number of resamples of the bootstrap.

    Raises:
        ModelError: A score is the same for all images.
        PoolError: An image cannot be read.
    """
    lengths, logits, log_probs = _outputs(model, [*inside, *outside])
    outputs = ModelOutputs(logits, lengths, log_probs, log_probs)
    scores = {
        OOD_SCORES[name].title: ood_score(name, outputs)
        for name in SCORES
        if len(log_probs) > 1 or not OOD_SCORES[name].of_several
    }
    n = len(inside)
    found = {name: _measured(name, values[:n], values[n:], seed, draws) for name, values in scores.items()}
    if odin_images and model.is_repeatable:
        generator = np.random.default_rng(derive_seed(seed, "odin"))
        of_each = [
            _odin(model, [images[p] for p in generator.permutation(len(images))[:odin_images]])
            for images in (inside, outside)
        ]
        title = OOD_SCORES["odin"].title
        found[title] = _measured(title, of_each[0], of_each[1], seed, draws)
    return found


def _odin(model: Classifier, images: Sequence[ImageRef]) -> Tensor:
    scores, failed = model.odin(images)
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


def _outputs(model: Classifier, images: Sequence[ImageRef]) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of the inputs of the last layers [M, N], their logits [M, N, K], and log-softmax of these [M, N, K]."""
    parts = list(model.outputs(images))
    _refuse_failed(tuple(pair for part in parts for pair in part.failed), images)
    logits = torch.cat([part.logits for part in parts], dim=1)
    # Not the predictions: under LogitNorm these come from normalized logits, which have lost the norm.
    return torch.cat([part.lengths for part in parts], dim=1), logits, logits.log_softmax(dim=-1)


def _refuse_failed(failed: Failed, images: Sequence[ImageRef]) -> None:
    if failed:
        path = next(image.path for image in images if image.image_id == failed[0][0])
        raise PoolError(
            f"{len(failed)} images cannot be read, for example {path}: {failed[0][1]}.", "Mend or remove them."
        )
