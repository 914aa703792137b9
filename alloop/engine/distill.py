"""One linear head on raw features that imitates a model with smoothed heads, for use where the graph is not at hand.

The head learns the model's own predictions for images of the pool, labeled or not. No label enters here: labels of the
holdout have an effect through the calibrator only, which was fitted to them before.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import final

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from alloop.engine.build import Hardware, HeadRecipe
from alloop.engine.calibrate import apply_calibration
from alloop.engine.device import deterministic
from alloop.engine.features import ensure_features
from alloop.engine.fit_heads import fit_heads
from alloop.engine.head_passes import HeadPasses
from alloop.engine.jobs import TrainJob
from alloop.engine.model_files import Network, load_model
from alloop.engine.objective import Objective
from alloop.errors import ModelError
from alloop.losses.named import find_loss
from alloop.models.backbones import Backbone
from alloop.models.ensemble import pool_members
from alloop.models.heads import MultiHead
from alloop.records import Calibration, ModelFiles
from alloop.seeds import derive_seed
from alloop.smoothing.smoothing import Smoothing, choose_nodes

DISTILLED = "distilled.safetensors"  # in the folder of a model version: weight [K, D] and bias [K], float32
MOST = 3_000  # images of the pool that the head learns from
CHUNK = 500  # images that all members predict at once
# benchmarks/pool_features says how the decay was found. The predictions belong to every class, so no prior is needed.
RECIPE = HeadRecipe(steps=80, weight_decay=3e-5, prior=0.0, loss_scale="mean")


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Distilled:
    """Linear head on raw features, calibrated as it is.

    Attributes:
        classes: Class names in the order of the outputs [K].
        weight: Weights [K, D], float32. The standardization of the features is part of weights and bias.
        bias: Biases [K], float32.
    """

    classes: tuple[str, ...]
    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, "K"]

    def log_probs(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Return calibrated log-probabilities, float32, for features of the published trunk.

        Raises:
            ValueError: The number of features does not fit.
        """
        if features.ndim != 2 or features.shape[1] != self.weight.shape[1]:
            raise ValueError(f"need features [B, {self.weight.shape[1]}], got {list(features.shape)}")
        return torch.nn.functional.linear(features.float(), self.weight, self.bias).log_softmax(dim=-1)

    def as_heads(self) -> MultiHead:
        """Return the same as heads of a network, for features that are not standardized."""
        heads = MultiHead(self.weight.shape[1], 1, len(self.classes))
        with torch.no_grad():
            heads.weight.copy_(self.weight.unsqueeze(0))
            heads.bias.copy_(self.bias.unsqueeze(0))
        return heads.eval().requires_grad_(requires_grad=False)


def distilled_files(
    job: TrainJob,
    networks: Iterable[Network],
    calibration: Calibration,
    smoothing: Smoothing | None,
    backbone: Backbone,
    hardware: Hardware,
) -> dict[str, bytes]:
    """Return the distilled head of a trained model, as a file by its name; nothing for a model with raw heads only.

    The head is fitted to a uniform sample of the pool that follows a hash of the content, of images in the graph only.
    The same job on the same machine gives the same bytes.

    Args:
        job: The job that trained the model.
        networks: All networks of the model.
        calibration: Calibrator of the model.
        smoothing: Graph that the model was trained with; None without smoothed heads.
        backbone: Published trunk of the model.
        hardware: Where features are computed that the cache does not have.

    Raises:
        ModelError: Features cannot be computed.
        WorkspaceError: The disk is full.
    """
    if smoothing is None or not job.is_kept:
        return {}
    in_graph = set(smoothing.keys)
    refs = {ref.key: ref for ref in job.pool if ref.key in in_graph}
    chosen = [refs[key] for key in choose_nodes(list(refs), (), MOST)]
    cache, failed = ensure_features(chosen, backbone, job.cache, hardware)
    gone = {image_id for image_id, _ in failed}
    images = [ref for ref in chosen if ref.image_id not in gone]
    features = torch.from_numpy(cache.take([ref.key for ref in images]))
    passes, heads = HeadPasses(job.settings, job.seed), list(networks)
    with deterministic():
        log_probs = []
        for start in range(0, len(images), CHUNK):
            part, rows = images[start : start + CHUNK], features[start : start + CHUNK]
            smoothed = smoothing.transform([ref.key for ref in part], rows)
            both = _predict(heads, passes, rows, smoothed, [ref.sha256 for ref in part])
            log_probs.append(apply_calibration(calibration, both))
        generator = torch.Generator().manual_seed(derive_seed(job.seed, "distilled head"))
        weight, bias = distill(features, torch.cat(log_probs), smoothing, generator)
    return {DISTILLED: safetensors.torch.save({"weight": weight, "bias": bias})}


def distill(
    features: Float[Tensor, "N D"], log_probs: Float[Tensor, "N K"], smoothing: Smoothing, generator: torch.Generator
) -> tuple[Float[Tensor, "K D"], Float[Tensor, "K"]]:
    """Fit one linear head to predictions, by cross-entropy with weight decay, along the principal axes of the pool.

    Other directions hold little of the variance, and a head fitted to all of them takes longer for the same accuracy
    (benchmarks/pool_features).

    Args:
        features: Raw features.
        log_probs: Calibrated log-probabilities to imitate.
        smoothing: Graph of the pool, whose axes are used.
        generator: Generator of the initial weights.

    Returns:
        Weights and biases for raw features, float32.

    Source: Hinton, Vinyals & Dean (2015), "Distilling the knowledge in a neural network", at temperature 1.
    """
    mean, axes = smoothing.mean, smoothing.axes
    along = (features.double() - mean).float() @ axes
    objective = Objective(find_loss(), None, None, "mean")
    heads, _ = fit_heads(along, log_probs.exp(), log_probs.shape[1], 1, objective, RECIPE, generator)
    on_axes = heads.weight[0].double() / heads.scale.double()
    weight = on_axes @ axes.double().T
    bias = heads.bias[0].double() - on_axes @ heads.center.double() - weight @ mean
    return weight.float(), bias.float()


def load_distilled(files: ModelFiles) -> Distilled:
    """Read the distilled head of a model version after checking that the version is whole. Nothing is unpickled.

    Raises:
        ModelError: The version has no distilled head, or is missing or damaged.
    """
    version = load_model(files)
    if DISTILLED not in dict(version.metadata.get("others", ())):
        if version.network.smoothed is None:
            raise ModelError(
                f"The model in {files.folder} has no distilled head: its heads are on raw features and need no graph.",
                "Use the model itself.",
            )
        raise ModelError(
            f"The model in {files.folder} has no distilled head: it is of an alloop before that.",
            "Train it again with `alloop train`.",
        )
    tensors = safetensors.torch.load_file(files.folder / DISTILLED)
    return Distilled(version.classes, tensors["weight"], tensors["bias"])


def _predict(
    networks: Sequence[Network], passes: HeadPasses, features: Tensor, smoothed: Tensor, sha256s: Sequence[str]
) -> Float[Tensor, "N 2 K"]:
    """Return uncalibrated log p̄ of all networks by raw and smoothed heads."""
    raw = ((network.heads, features) for network in networks)
    other = ((network.smoothed, smoothed) for network in networks if network.smoothed is not None)
    return torch.stack(
        [
            pool_members(
                member
                for heads, rows in kind
                for member in passes.member_log_probs(passes.logits(heads, rows, sha256s))
            )
            for kind in (raw, other)
        ],
        dim=1,
    )
