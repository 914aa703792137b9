"""Trunks by name: images [B, 3, H, W] to features [B, D], with the preprocessing of their weights.

There are five kinds of names: a torchvision classification model (`resnet50`), `timm:NAME` with the extra, a factory of
the user (`package.module:factory`), `pixels`, which needs no weights, and `features:D` for D given features. Several
trunks can stand side by side.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import math
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from alloop.errors import AlloopError, ConfigError, ModelError
from alloop.models.given import Given
from alloop.models.pixels import Pixels
from alloop.models.side_by_side import SideBySide, join_pixels, split_pixels
from alloop.models.state import load_weights
from alloop.models.vision import torchvision, transforms
from alloop.records import Precision

Interpolation = Literal["nearest", "bilinear", "bicubic"]
GIVEN = "features:"  # prefix of names for features that were computed elsewhere
STRIP = 16  # images with a larger ratio of sides are cut before resizing, which would otherwise take gigabytes
DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer after which a download fails
PIXELS = 2  # version of the rule from a file to the pixels of a trunk; 1: JPEG at full size, resized by torchvision
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class Photo(Protocol):
    """An image that is decoded as far as it is needed; `pool.picture.Photo`."""

    def enough(
        self, needed: Callable[[int, int], tuple[int, int]], /
    ) -> tuple[Image.Image, tuple[float, float, float, float]]:
        """Return an upright RGB image, and the part of it to be resized: left, top, right and bottom edge.

        Its resolution is at least that which `needed` returns for the image's width and height.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Trunk with the preprocessing of its images.

    A user's factory returns a `Backbone`, or an `nn.Module` that maps normalized images [B, 3, H, W] to features
    [B, D]. A plain module gets ImageNet's preprocessing at 224 pixels, and its D is found by trying it.

    Attributes:
        module: Module that maps float images [B, 3, S, S] to features [B, D].
        n_features: Number of features D.
        image_size: Side S of the square that is cut out of the middle, in pixels.
        resize: Pixels of the shorter side before the cut; None: `image_size`; 0: both sides become `image_size`, which
            changes the proportions.
        mean, std: Mean and standard deviation of each channel, for values in [0, 1].
        interpolation: Method of resizing (always with antialiasing, except "nearest").
        parts: Trunks that stand side by side; `side_by_side` sets it. Images are then rows of pixels [B, P] with the
            pixels of every trunk (`models.side_by_side`), and the attributes above, except `module` and `n_features`,
            are those of the parts.
        precision: Precision of the trunk's arithmetic. Features in bfloat16 differ from those in float32 by up to 1 %.
    """

    module: nn.Module
    n_features: int
    image_size: int = 224
    resize: int | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    parts: tuple["Backbone", ...] = ()
    precision: Precision = "float32"

    @property
    def alone(self) -> tuple["Backbone", ...]:
        """The trunks that stand side by side, each as a trunk of its own; of one trunk, itself."""
        return self.parts or (self,)

    def resized_to(self, image_size: int | None) -> "Backbone":
        """Return the trunk for images of another size, with the same relative cut. None changes nothing."""
        if image_size is None or image_size == self.image_size:
            return self
        resize = self.resize and round(self.resize * image_size / self.image_size)
        return dataclasses.replace(self, image_size=image_size, resize=resize)

    def in_precision(self, precision: Precision) -> "Backbone":
        """Return the same trunk for another precision. Given features stay as they are."""
        parts = tuple(part.in_precision(precision) for part in self.parts)
        kept: Precision = "float32" if isinstance(self.module, Given) else precision
        return dataclasses.replace(self, parts=parts, precision=kept)

    def preprocess(self, photo: Photo) -> Tensor:
        """Resize and cut an image: to uint8 [3, S, S], or to a row [P] for trunks side by side.

        Pillow resizes, so that an image has the same pixels on every processor.
        """
        if self.parts:
            return join_pixels([part.preprocess(photo) for part in self.parts], is_batch=False)
        image, shown = photo.enough(self.needed_size)
        width, height = shown[2] - shown[0], shown[3] - shown[1]
        if self._is_strip(width, height):
            image = self._middle(image)
            width, height, shown = *image.size, (0, 0, *image.size)
        size, whole = self._resized(width, height), (0, 0, *image.size)
        if (size, shown) != (image.size, whole):  # Pillow would copy all of it
            image = image.resize(size, RESAMPLING[self.interpolation], box=shown)
        cut: Tensor = transforms.pil_to_tensor(transforms.center_crop(image, [self.image_size, self.image_size]))
        return cut

    def needed_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to which an image is resized; its own size if it must not be reduced before."""
        if self._is_strip(width, height) or self.interpolation == "nearest":
            return width, height
        return self._resized(width, height)

    def _resized(self, width: float, height: float) -> tuple[int, int]:
        shorter, size = self._shorter, self.image_size
        if not shorter:
            return size, size
        longer = int(shorter * max(width, height) / min(width, height))
        return (shorter, longer) if width <= height else (longer, shorter)

    @property
    def _shorter(self) -> int:
        return self.image_size if self.resize is None else self.resize

    def _is_strip(self, width: float, height: float) -> bool:
        return self._shorter > 0 and max(width, height) > STRIP * min(width, height)

    def _middle(self, strip: Image.Image) -> Image.Image:
        """Return the middle of a strip, most of which would be enlarged and then cut off.

        The middle is twice as long as the final cut, so that interpolation at the cut's edges gives the same pixels.
        """
        width, height = strip.size
        kept = math.ceil(2 * self.image_size * min(height, width) / self._shorter)
        cut: Image.Image = transforms.center_crop(strip, [min(height, kept), min(width, kept)])
        return cut

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize uint8 images [B, 3, S, S], or rows [B, P], for the trunk: float32, on the images' device."""
        if self.parts:
            normals = [part.normalize(its) for part, its in zip(self.parts, self.each_ones_images(images), strict=True)]
            return join_pixels(normals, is_batch=True)
        # torchvision's `normalize` waits for the device, because its copies of mean and deviation block.
        mean, std = (
            torch.tensor(values).reshape(3, 1, 1).to(images.device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        return (images.float() / 255).sub(mean).div_(std)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the normalization: of every channel [3], or of every pixel of a row [P]."""
        if self.parts:
            spread = [
                part.deviation.reshape(3, 1, 1).expand(3, part.image_size, part.image_size) for part in self.parts
            ]
            return join_pixels(spread, is_batch=False)
        return torch.tensor(self.std)

    def each_ones_images(self, images: Tensor) -> list[Tensor]:
        """Return the images [B, 3, S_i, S_i] of each trunk, from those of all trunks as `preprocess` gives them."""
        return split_pixels(images, [part.image_size for part in self.parts]) if self.parts else [images]

    def without_weights(self) -> "Backbone":
        """Return the preprocessing alone, which is small enough to be sent to other processes."""
        parts = tuple(part.without_weights() for part in self.parts)
        return dataclasses.replace(self, module=nn.Identity(), parts=parts)

    def fingerprint(self) -> dict[str, object]:
        """Return everything a feature depends on besides the image: weights, code, preprocessing. JSON-able."""
        if self.parts:
            return {"side_by_side": [part.fingerprint() for part in self.parts]}
        return {
            "trunk": f"{type(self.module).__module__}.{type(self.module).__qualname__}",
            "weights": state_digest(self.module),
            "n_features": self.n_features,
            "image_size": self.image_size,
            "resize": self.resize,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            **({} if self.precision == "float32" else {"precision": self.precision}),
            **({} if isinstance(self.module, Given) else {"pixels": PIXELS}),
        }


def side_by_side(parts: Sequence[Backbone]) -> Backbone:
    """Return several trunks as one, whose features are those of the parts in this order. One part is returned as is."""
    if len(parts) == 1:
        return parts[0]
    module = SideBySide([part.module for part in parts], [part.image_size for part in parts])
    n_features = sum(part.n_features for part in parts)
    return Backbone(module.eval(), n_features, parts=tuple(parts), precision=parts[0].precision)


def without_pixels(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint without the version of the pixels.

    Models stay in use when it rises: it rises for speed, and pixels change by little. Features are computed anew.
    """
    found = {name: value for name, value in fingerprint.items() if name not in ("pixels", "side_by_side")}
    if "side_by_side" in fingerprint:
        found["side_by_side"] = [without_pixels(part) for part in fingerprint["side_by_side"]]
    return found


def load_backbone(
    name: str, weights: str = "DEFAULT", image_size: int | None = None, search_paths: Sequence[Path] = (), seed: int = 0
) -> Backbone:
    """Load the trunk that a name in alloop.toml stands for, in eval mode.

    Args:
        name: Name of the trunk; see the top of this file.
        weights: "DEFAULT", "none" (random, drawn from `seed`), the name of weights that torchvision publishes, or a
            local .safetensors or .pth state dict.
        image_size: Side in pixels; None: the size that the weights were trained with.
        search_paths: Folders of a factory's module, besides the Python path.
        seed: Seed of random weights.

    Raises:
        ConfigError: The name is unknown.
        ModelError: The weights cannot be loaded, or do not fit.
    """
    with torch.random.fork_rng(_cards_in_use()):  # `manual_seed` seeds every card too, also in a factory
        torch.manual_seed(seed)
        found = _find(name, weights, image_size, search_paths)
    backbone = found.resized_to(image_size)
    built_for = getattr(backbone.module, "image_size", backbone.image_size)
    if name.startswith("vit_") and built_for != backbone.image_size:
        raise ConfigError(f"{name} takes images of {built_for} pixels only.", "Remove [model] image_size.")
    backbone.module.eval().requires_grad_(requires_grad=False)
    if backbone.image_size != found.image_size and not isinstance(backbone.module, Given):
        _try_size(backbone, name)
    return backbone


def _cards_in_use() -> list[int]:
    is_used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if is_used else []


def check_backbone(name: str, weights: str, search_paths: Sequence[Path] = ()) -> None:
    """Refuse an unknown name before anything is loaded.

    Raises:
        ConfigError: The trunk is unknown, or torchvision publishes no such weights.
        ModelError: A package is missing.
    """
    if name == "pixels" or name.startswith(GIVEN):
        return
    if name.startswith("timm:"):
        _import_timm(name.removeprefix("timm:"))
    elif ":" in name:
        module_name, _, factory_name = name.partition(":")
        _import_factory(module_name, factory_name, search_paths)
    else:
        _published(name, weights)


def _try_size(backbone: Backbone, name: str) -> None:
    """Refuse an image size that the trunk cannot take: too small for its strides, or not a multiple of its patches.

    Raises:
        ConfigError: The trunk fails on an image of this size, or its features are not finite or have a wrong shape.
    """
    size = backbone.image_size
    try:
        with torch.inference_mode():
            features = backbone.module(torch.zeros(1, 3, size, size))
        if features.shape != (1, backbone.n_features) or not bool(torch.isfinite(features).all()):
            raise ValueError(f"it gives {list(features.shape)} in place of [1, {backbone.n_features}] finite features")
    except Exception as error:  # code of another package can raise anything
        raise ConfigError(
            f"{name} cannot take images of {size} pixels: {str(error).partition(chr(10))[0].rstrip('.')}.",
            "Set another [model] image_size, or remove it.",
        ) from error


def _find(name: str, weights: str, image_size: int | None, search_paths: Sequence[Path]) -> Backbone:
    if name == "pixels":
        return _pixels()
    if name.startswith(GIVEN):
        return Backbone(Given(), int(name.removeprefix(GIVEN)), image_size=1)
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"), weights, image_size)
    if ":" in name:
        return _from_factory(name, weights, search_paths)
    return _from_torchvision(name, weights)


def state_digest(module: nn.Module) -> str:
    """Return the SHA-256 over names, shapes and bytes of a module's whole state, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# -- torchvision ------------------------------------------------------------------------------------------------------


def _from_torchvision(name: str, weights: str) -> Backbone:
    chosen = _published(name, weights)
    preset = chosen.transforms()
    # Vision transformers are built for one image size, which the published weights define.
    size = {"image_size": preset.crop_size[0]} if name.startswith("vit_") else {}
    is_published = is_weights_name(name, weights) and weights != "none"
    module = _download(name, chosen) if is_published else torchvision.models.get_model(name, weights=None, **size)
    head, n_features = _cut_classifier(module)
    if not is_published and weights != "none":
        load_weights(module, Path(weights), ignore=(head, "aux", "AuxLogits"))
    return Backbone(
        module=module,
        n_features=n_features,
        image_size=preset.crop_size[0],
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def is_weights_name(backbone: str, weights: str) -> bool:
    """Return whether weights are named rather than a file: DEFAULT, none, or weights that torchvision publishes."""
    return weights in {"DEFAULT", "none"} or weights in _published_names(backbone)


def _published_names(backbone: str) -> list[str]:
    if ":" in backbone or backbone not in torchvision.models.list_models(module=torchvision.models):
        return []
    return list(torchvision.models.get_model_weights(backbone).__members__)


def _published(name: str, weights: str) -> Any:
    """Return the published weights whose preprocessing applies: those named or copied by a file, else the default.

    Raises:
        ConfigError: The trunk is unknown, or the weights are neither a published name nor a file.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ConfigError(f"There is no backbone {name!r}.", _nearest(name, ["pixels", *names]))
    entries = torchvision.models.get_model_weights(name)
    if weights in entries.__members__:
        return entries[weights]
    file = Path(weights)
    if weights != "none" and not file.suffix and not file.exists():
        raise ConfigError(
            f"There are no weights {file.name!r} of {name}, and no such file.",
            _nearest(file.name, _published_names(name)),
        )
    same = [entry for entry in entries if entry.url.rsplit("/", 1)[-1] == file.name]
    return same[0] if same else entries.DEFAULT


def _download(name: str, weights: Any) -> nn.Module:
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torch.hub sets no timeout and would wait forever
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub prints to standard output, which is for results
            module: nn.Module = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:  # no network, or a wrong hash
        raise ModelError(
            f"The weights of {name} could not be loaded: {str(error).rstrip('.')}.",
            f"Fetch {weights.url} on a machine that can reach it and put it at {file}, or name the file in "
            f'[model] weights; weights = "none" starts from random ones.',
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return module


def _cut_classifier(module: nn.Module) -> tuple[str, int]:
    """Remove the last layer, which has one output per class of ImageNet.

    The layers before it (dropout, ConvNeXt's norm, VGG's hidden layers) stay in the trunk.

    Returns:
        The layer's name and its number of inputs, D.
    """
    for auxiliary in ("aux1", "aux2", "AuxLogits"):  # GoogLeNet, Inception: needed only for training from scratch
        if hasattr(module, auxiliary):
            setattr(module, auxiliary, None)
            module.aux_logits = False  # type: ignore[assignment]
    found = {
        name: layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        for name, layer in module.named_modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == 1000)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == 1000)
    }
    name, n_features = list(found.items())[-1]
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, nn.Identity())
    return name, n_features


# -- timm -------------------------------------------------------------------------------------------------------------


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModelError(f"Backbone timm:{name} needs timm.", "Install it: pip install 'alloop[timm]'.") from error
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}.", _nearest(name, timm.list_models()))
    return timm


def _from_timm(name: str, weights: str, image_size: int | None) -> Backbone:
    timm = _import_timm(name)
    # Vision transformers are built for one image size; timm fits their position embeddings to another one.
    published = timm.get_pretrained_cfg(name)
    is_fixed = image_size is not None and published is not None and published.fixed_input_size
    extra = {"img_size": image_size} if is_fixed else {}
    try:
        module = timm.create_model(name, pretrained=weights == "DEFAULT", num_classes=0, **extra)
    except Exception as error:  # the hub's client raises errors of several libraries
        raise ModelError(
            f"timm:{name} could not be made: {str(error).rstrip('.')}.",
            "Fetch them on a machine that can reach them and name the file in [model] weights.",
        ) from error
    if weights not in {"DEFAULT", "none"}:
        load_weights(
            module, Path(weights), ignore=tuple(name for name in [module.default_cfg.get("classifier")] if name)
        )
    data = timm.data.resolve_model_data_config(module)
    size = data["input_size"][-1]
    return Backbone(
        module=module,
        n_features=module.num_features if not hasattr(module, "head_hidden_size") else module.head_hidden_size,
        image_size=size,
        resize=round(size / data["crop_pct"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"] if data["interpolation"] in {"nearest", "bilinear"} else "bicubic",
    )


# -- a user's factory -------------------------------------------------------------------------------------------------


def _from_factory(name: str, weights: str, search_paths: Sequence[Path]) -> Backbone:
    module_name, _, factory_name = name.partition(":")
    factory = _import_factory(module_name, factory_name, search_paths)
    try:
        made = factory()
    except AlloopError:
        raise
    except Exception as error:
        raise ModelError(f"Backbone {name} failed: {type(error).__name__}: {error}.", "Mend the factory.") from error
    if isinstance(made, nn.Module):
        made = Backbone(made, n_features=_count_features(made, name))
    if not isinstance(made, Backbone):
        raise ModelError(
            f"Backbone {name} returned {type(made).__name__}.",
            "It must return an nn.Module (images [B, 3, H, W] to features [B, D]) or alloop.models.backbones.Backbone.",
        )
    if weights not in {"DEFAULT", "none"}:
        load_weights(made.module, Path(weights))
    return made


def _import_factory(module_name: str, factory_name: str, search_paths: Sequence[Path]) -> Callable[[], object]:
    wanted = f"{module_name}:{factory_name}"
    with _importable_from(search_paths):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name + ".").startswith(error.name + "."):
                raise ModelError(f"Backbone {wanted} needs the module {error.name}.", "Install it.") from error
            places = ", ".join(str(path) for path in search_paths)
            raise ConfigError(
                f"Backbone {wanted}: there is no module {module_name!r}.", f"Put it on the Python path or in {places}."
            ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        functions = [name for name, _ in inspect.getmembers(module, callable) if not name.startswith("_")]
        raise ConfigError(
            f"Backbone {wanted}: {module_name} has no {factory_name!r}.", _nearest(factory_name, functions)
        )
    return factory  # type: ignore[no-any-return]


@contextlib.contextmanager
def _importable_from(folders: Sequence[Path]) -> Iterator[None]:
    """Make modules in these folders importable, after all installed ones."""
    added = [str(folder) for folder in folders if str(folder) not in sys.path]
    sys.path.extend(added)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def _count_features(module: nn.Module, name: str) -> int:
    module.eval()
    try:
        with torch.inference_mode():
            features = module(torch.zeros(1, 3, 224, 224))
    except Exception as error:
        raise ModelError(
            f"Backbone {name} cannot take images [1, 3, 224, 224]: {error}.",
            "Return alloop.models.backbones.Backbone with the image_size it needs.",
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ModelError(f"Backbone {name} gives {shape}.", "It must give features [B, D]: pool and flatten them.")
    return features.shape[1]


# -- pixels -----------------------------------------------------------------------------------------------------------


def _pixels() -> Backbone:
    module = Pixels()
    return Backbone(module, module.n_features, image_size=8, resize=0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or sorted(names)[:3]
    return f"Did you mean {' or '.join(close)}?"
