"""ODIN's score of a pool: the one that needs pixels and a gradient, so that the trunk runs for every image.

Forwards once, and for each of M members (heads, passes, networks) backwards and forwards: 1 + 2 M passes, and features
in the cache do not help.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from alloop.engine.build import build_backbone, build_hardware, search_paths
from alloop.engine.device import full_float32, in_halves
from alloop.engine.features import Failed, load_batches
from alloop.engine.head_passes import HeadPasses
from alloop.engine.jobs import ScoreJob
from alloop.engine.model_files import ModelVersion
from alloop.errors import ModelError
from alloop.evaluation import ood
from alloop.models.heads import MultiHead
from alloop.progress import Progress, silent
from alloop.records import ImageRef


class Odin:
    """Scores images with all networks of a model version, one trunk in memory at a time."""

    def __init__(self, job: ScoreJob, version: ModelVersion, passes: HeadPasses) -> None:
        """The job says where to compute; the passes must be repeatable."""
        self._version, self._passes = version, passes
        self._backbone = build_backbone(job.config, search_paths(job.cache))
        self._hardware = build_hardware(job.config, job.device)

    def score(self, images: Sequence[ImageRef], progress: Progress = silent) -> tuple[Tensor, list[int], Failed]:
        """Mean over members of their scores [B], float32; the images that could be read, and those that could not.

        Raises:
            ModelError: The trunk has no gradient.
        """
        rows: list[dict[int, Tensor]] = []
        reasons: dict[int, str] = {}
        numbers = range(len(self._version.files))
        # Heads on the published trunk are members of one network.
        for group in [[number] for number in numbers] if self._version.trunk else [list(numbers)]:
            networks = [self._version.load_network(number) for number in group]
            if networks[0].trunk:
                self._backbone.module.load_state_dict(networks[0].trunk)
            rows.append(self._of_trunk([network.heads for network in networks], images, reasons, progress))
        kept = [place for place in range(len(images)) if all(place in row for row in rows)]
        scores = [torch.stack([row[place] for row in rows]).mean() for place in kept]
        return torch.stack(scores) if scores else torch.empty(0), kept, tuple(reasons.items())

    def _of_trunk(
        self, heads: Sequence[MultiHead], images: Sequence[ImageRef], reasons: dict[int, str], progress: Progress
    ) -> dict[int, Tensor]:
        """Scores by position; what cannot be read is added to the reasons."""
        backbone = self._backbone
        trunk, std = backbone.module.to(self._hardware.device), torch.tensor(backbone.std)

        def network(inputs: Tensor) -> Tensor:
            features = trunk(inputs).float().cpu()
            return torch.cat([self._passes.logits_with_gradient(part, features) for part in heads])

        def run(part: Tensor) -> Tensor:
            normalized = backbone.normalize(part.to(self._hardware.device))
            with full_float32():
                return ood.odin(network, normalized, std=std).float().cpu()

        found: dict[int, Tensor] = {}
        for batch in load_batches(images, backbone, self._hardware):
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
