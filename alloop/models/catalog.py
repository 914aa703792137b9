"""Published trunks worth trying, with what is known about them. Nothing is loaded or downloaded here.

Sizes, resolutions and accuracies of torchvision's trunks come from the installed torchvision. Facts about timm's trunks
are those of timm 1.0 (licence, resolution, parameters); a number that has no source is None.
"""

import dataclasses
import os
from pathlib import Path

import torch

from alloop.models.vision import torchvision

_DINO = "README of github.com/facebookresearch/dino"
_DINOV2 = "README of github.com/facebookresearch/dinov2"
_SWAG = "torchvision: a linear classifier on the frozen trunk, arXiv 2201.08371"
_HUB_WEIGHTS = "snapshots/*/*.[sb][ai][fn]*"  # .safetensors or .bin
_NON_COMMERCIAL = "CC-BY-NC-4.0"  # torchvision's README says so of all SWAG weights


@dataclasses.dataclass(frozen=True)
class Published:
    """Trunk with published weights.

    Attributes:
        name: Value of `[model] backbone`.
        weights: Value of `[model] weights`.
        n_features: Number of features D.
        licence: Licence of the weights; empty if the publisher states none.
        megabytes: Size of the file, in 10^6 bytes.
        image_size: Side of the image that the weights were trained with, in pixels.
        supervised: ImageNet top-1 accuracy of the whole network with its own classifier, %. It says little about the
            features: training that raises it can make them transfer worse (docs/backbones.md).
        linear, knn: ImageNet top-1 accuracy of a linear classifier and of k nearest neighbours on frozen features, %.
        source: Origin of `linear` and `knn`.
        note: What to know before choosing it.
        file: Place of the downloaded file, or of the hub's repository; None if nothing is downloaded.
    """

    name: str
    weights: str
    n_features: int
    licence: str = ""
    megabytes: float = 0.0
    image_size: int | None = None
    supervised: float | None = None
    linear: float | None = None
    knn: float | None = None
    source: str = ""
    note: str = ""
    file: Path | None = None

    @property
    def needs_timm(self) -> bool:
        return self.name.startswith("timm:")

    @property
    def is_there(self) -> bool:
        """True if no download is needed."""
        if self.file is None:
            return True
        # Of a hub's repository, an interrupted download leaves a folder without the weights.
        return any(self.file.glob(_HUB_WEIGHTS)) if self.needs_timm else self.file.exists()


def list_published() -> tuple[Published, ...]:
    """List the trunks: small ones first, torchvision's before timm's."""
    return (
        Published("pixels", "none", 1024, note="random filters without training, for small and simple images"),
        _torchvision("efficientnet_b0", "IMAGENET1K_V1", 1280, note="small and fast"),
        _torchvision("mobilenet_v3_large", "IMAGENET1K_V1", 1280, note="small and fast"),
        _torchvision(
            "resnet50", "IMAGENET1K_V1", 2048, note="plain training; frozen features likely better than those of V2"
        ),
        _torchvision("resnet50", "IMAGENET1K_V2", 2048, note="the default; label smoothing, MixUp, CutMix, 600 epochs"),
        _torchvision("convnext_tiny", "IMAGENET1K_V1", 768, note="label smoothing, MixUp, CutMix"),
        _torchvision("efficientnet_v2_s", "IMAGENET1K_V1", 1280, note="large images, so slow"),
        _swag("vit_b_16", 768),
        _swag("regnet_y_16gf", 3024),
        _timm("vit_small_patch16_224.dino", 384, 21.67, 224, linear=77.0, knn=74.5, source=_DINO),
        _timm("vit_small_patch14_dinov2.lvd142m", 384, 22.06, 518, linear=81.1, knn=79.0, source=_DINOV2),
        _timm("vit_base_patch14_dinov2.lvd142m", 768, 86.58, 518, linear=84.5, knn=82.1, source=_DINOV2),
        _timm("vit_base_patch16_clip_224.openai", 768, 85.80, 224, note="trained on images with captions"),
    )


def _torchvision(name: str, weights: str, n_features: int, licence: str = "", note: str = "") -> Published:
    entry = torchvision.models.get_model_weights(name)[weights]
    return Published(
        name,
        weights,
        n_features,
        licence,
        megabytes=entry.meta["_file_size"] * 2**20 / 1e6,
        image_size=entry.transforms().crop_size[0],
        supervised=entry.meta["_metrics"]["ImageNet-1K"]["acc@1"],
        note=note,
        file=Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/", 1)[-1],
    )


def _swag(name: str, n_features: int) -> Published:
    """Return a trunk that learned from hashtags, with torchvision's accuracy of a linear classifier on it."""
    found = _torchvision(
        name, "IMAGENET1K_SWAG_LINEAR_V1", n_features, _NON_COMMERCIAL, "trained on images with hashtags"
    )
    return dataclasses.replace(found, linear=found.supervised, supervised=None, source=_SWAG)


def _timm(
    name: str,
    n_features: int,
    parameters: float,
    image_size: int,
    linear: float | None = None,
    knn: float | None = None,
    source: str = "",
    note: str = "",
) -> Published:
    """Return a trunk of timm. Its file holds 4 bytes per parameter; parameters are in millions."""
    slow = "with image_size = 224 it reads a fifth of the patches" if image_size > 400 else ""
    return Published(
        f"timm:{name}",
        "DEFAULT",
        n_features,
        "Apache-2.0",
        megabytes=4 * parameters,
        image_size=image_size,
        linear=linear,
        knn=knn,
        source=source,
        note=note or slow,
        file=_hub_folder() / f"models--timm--{name}",
    )


def _hub_folder() -> Path:
    """Return the folder in which Hugging Face's client keeps downloads, without importing the client."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_HOME") or Path(cache) / "huggingface") / "hub"
