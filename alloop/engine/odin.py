"""ODIN scores of images: the OOD score that needs pixels and a gradient, so that the trunk runs for every image.

For M members (heads, passes, networks) the trunk runs forward once, and then backward and forward M times: 1 + 2 M
passes. Cached features do not help.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from alloop.engine.build import Hardware
from alloop.engine.device import full_float32, in_halves
from alloop.engine.features import Failed, load_batches
from alloop.engine.head_passes import HeadPasses
from alloop.errors import ModelError
from alloop.evaluation import ood
from alloop.models.backbones import Backbone
from alloop.models.heads import MultiHead
from alloop.progress import Progress, silent
from alloop.records import ImageRef


def odin_scores(
    backbone: Backbone,
    networks: Iterable[Sequence[MultiHead]],
    passes: HeadPasses,
    images: Sequence[ImageRef],
    hardware: Hardware,
    progress: Progress = silent,
) -> tuple[Tensor, Failed]:
    """Mean over networks of the ODIN scores of the images that could be read, float32, in the order given.

    Args:
        backbone: Trunk and preprocessing.
        networks: Heads that share a trunk. The iterator puts their trunk into `backbone` before it gives the heads, so
            that one trunk is in memory at a time.
        passes: Applies the heads; it must be repeatable.
        images: Images to score.
        hardware: Device and batch size.
        progress: Told how many images of a network are done.

    Returns:
        The scores [B], and the images that could not be read, with the reasons.

    Raises:
        ModelError: The trunk has no gradient.
    """
    reasons: dict[int, str] = {}
    rows = [_of_trunk(backbone, heads, passes, images, hardware, reasons, progress) for heads in networks]
    kept = [place for place, image in enumerate(images) if image.image_id not in reasons]
    scores = [torch.stack([row[place] for row in rows]).mean() for place in kept]
    return torch.stack(scores) if scores else torch.empty(0), tuple(reasons.items())


def _of_trunk(
    backbone: Backbone,
    heads: Sequence[MultiHead],
    passes: HeadPasses,
    images: Sequence[ImageRef],
    hardware: Hardware,
    reasons: dict[int, str],
    progress: Progress,
) -> dict[int, Tensor]:
    """Scores by position under one trunk. Images that cannot be read are added to `reasons`."""
    trunk, std = backbone.module.to(hardware.device), backbone.deviation

    def network(inputs: Tensor) -> Tensor:
        features = trunk(inputs).float().cpu()
        return torch.cat([passes.logits_with_gradient(part, features) for part in heads])

    def run(part: Tensor) -> Tensor:
        normalized = backbone.normalize(part.to(hardware.device))
        with full_float32():
            return ood.odin(network, normalized, std=std).float().cpu()

    found: dict[int, Tensor] = {}
    for batch in load_batches(images, backbone, hardware):
        reasons |= dict(batch.failed)
        if len(batch.positions):
            try:
                scores = in_halves(run, batch.images)
            except ValueError as error:
                hint = "Set another [acquisition] ood_score."
                raise ModelError(f"The images cannot be scored by ODIN: {error}.", hint) from error
            found |= dict(zip(batch.positions.tolist(), scores, strict=True))
            progress("odin", len(found), len(images))
    return found
