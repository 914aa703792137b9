"""A model version on disk: a `.safetensors` for each network, and `model.json`. Written whole, checked before use."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from alloop.config.schema import ModelConfig, TrainConfig
from alloop.engine.settings import EngineSettings
from alloop.errors import ModelError
from alloop.files import explain_os_error, sha256_of, write_bytes, write_json
from alloop.models.heads import MultiHead
from alloop.records import MODEL_METADATA, Calibration, ModelFiles, Precision

WEIGHTS = "model.safetensors"
FORMAT = 3  # goes up when an older alloop could not read the files
OLDEST = 2  # format that this alloop still reads; 3 added smoothed heads


@dataclasses.dataclass(frozen=True)
class Network:
    """One trained network.

    Attributes:
        heads: Heads on raw features, in eval mode, on the CPU.
        trunk: State of its trunk by name; empty if the trunk is the published one.
        smoothed: Heads on smoothed features; None without them.
    """

    heads: MultiHead
    trunk: dict[str, Tensor]
    smoothed: MultiHead | None = None


@dataclasses.dataclass(frozen=True)
class ModelVersion:
    """A loaded model version.

    Attributes:
        network: First network, or the only one.
        files: Weight files of all networks, in order.
        classes: Class names in the order of the outputs.
        calibration: Calibrator of the version.
        metadata: Content of model.json.
    """

    network: Network
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    calibration: Calibration
    metadata: Mapping[str, Any]

    @property
    def heads(self) -> MultiHead:
        return self.network.heads

    @property
    def trunk(self) -> Mapping[str, Tensor]:
        return self.network.trunk

    @property
    def n_members(self) -> int:
        """M: heads of all networks, or dropout passes."""
        return ModelConfig.model_validate(self.metadata["config"]["model"]).n_members

    @property
    def precision(self) -> Precision:
        """Precision of the features that it was trained on."""
        backbone = self.metadata["backbone"]
        one: Precision = backbone.get("side_by_side", [backbone])[0].get("precision", "float32")
        return one

    def as_trained(self, settings: EngineSettings) -> EngineSettings:
        """Return settings with [model] and [train] as this version was trained. Device, engine and workers stay."""
        stored = self.metadata["config"]
        today = {"device": settings.model.device, "engine": settings.model.engine, "precision": self.precision}
        model = ModelConfig.model_validate({**stored["model"], **today})
        train = TrainConfig.model_validate({**stored["train"], "workers": settings.train.workers})
        return dataclasses.replace(settings, model=model, train=train)

    def load_network(self, position: int) -> Network:
        """Return one network of an ensemble. The caller decides how many are in memory."""
        return self.network if position == 0 else read_network(self.files[position])


def save_version(
    out: Path,
    networks: Iterable[Network],
    calibration: Calibration,
    metadata: Mapping[str, Any],
    others: Mapping[str, bytes] | None = None,
) -> ModelFiles:
    """Write a model version. The folder `out` appears as a whole or not at all, and replaces an earlier one.

    `model.json` holds the SHA-256 of all weights. The checksum of the version is that of `model.json`, so it covers
    every file. Each network is written before the next one is asked for. `others` are further files by name.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise explain_os_error(error, out) from error
    try:
        checksums: list[tuple[str, str]] = []
        for number, network in enumerate(networks):
            name = WEIGHTS if number == 0 else f"model-{number}.safetensors"
            write_network(network, temporary / name)
            checksums.append((name, sha256_of(temporary / name)))
        beside: list[tuple[str, str]] = []
        for name, data in (others or {}).items():
            write_bytes(temporary / name, data)
            beside.append((name, sha256_of(temporary / name)))
        whole = {
            **metadata,
            "format": FORMAT,
            "calibration": dataclasses.asdict(calibration),
            "networks": checksums,
            "others": beside,
        }
        write_json(temporary / MODEL_METADATA, whole)
        checksum = sha256_of(temporary / MODEL_METADATA)
        temporary.chmod(0o755)
        _take_name(temporary, out)
    except OSError as error:
        raise explain_os_error(error, out) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ModelFiles(out, checksum)


def load_model(files: ModelFiles) -> ModelVersion:
    """Read a model version after checking that it is whole. Nothing is unpickled.

    Raises:
        ModelError: The version is missing, damaged, or written by another alloop whose files cannot be read.
    """
    again = f"Train it again with `alloop train`; {files.folder} can be deleted."
    try:
        intact = sha256_of(files.folder / MODEL_METADATA) == files.sha256
        metadata = json.loads((files.folder / MODEL_METADATA).read_bytes()) if intact else {}
        networks = metadata.get("networks", [])
        listed = [*networks, *metadata.get("others", [])]
        intact = intact and all(sha256_of(files.folder / name) == checksum for name, checksum in listed)
    except OSError as error:
        raise ModelError(f"The model in {files.folder} cannot be read: {error.strerror}.", again) from error
    if not intact:
        raise ModelError(f"The model in {files.folder} is damaged: its checksum does not match.", again)
    if metadata["format"] > FORMAT:
        raise ModelError(f"The model in {files.folder} was written by a newer alloop.", "Upgrade alloop.")
    if metadata["format"] < OLDEST:
        raise ModelError(f"The model in {files.folder} was written by an alloop that is too old.", again)
    paths = tuple(files.folder / name for name, _ in networks)
    calibration = Calibration(**metadata["calibration"])
    return ModelVersion(read_network(paths[0]), paths, tuple(metadata["classes"]), calibration, metadata)


def write_network(network: Network, path: Path) -> None:
    """Write the weights of a network as safetensors."""
    tensors = {f"heads.{name}": tensor for name, tensor in network.heads.state_dict().items()}
    tensors |= {f"trunk.{name}": tensor for name, tensor in network.trunk.items()}
    if network.smoothed is not None:
        tensors |= {f"smoothed.{name}": tensor for name, tensor in network.smoothed.state_dict().items()}
    _write_weights({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def read_network(path: Path) -> Network:
    """Read heads and trunk from one file, on the CPU. Nothing is unpickled."""
    parts: dict[str, dict[str, Tensor]] = {"heads": {}, "trunk": {}, "smoothed": {}}
    for name, tensor in safetensors.torch.load_file(path).items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    smoothed = _make_heads(parts["smoothed"]) if parts["smoothed"] else None
    return Network(_make_heads(parts["heads"]), parts["trunk"], smoothed)


def _make_heads(state: dict[str, Tensor]) -> MultiHead:
    n_heads, n_classes, n_features = state["weight"].shape
    heads = MultiHead(n_features, n_heads, n_classes)
    heads.load_state_dict(state)
    heads.eval().requires_grad_(requires_grad=False)
    return heads


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that the numbers of a model depend on."""
    return dict(_library_versions())


@functools.cache
def _library_versions() -> tuple[tuple[str, str], ...]:
    names = ("alloop", "torch", "torchvision", "numpy", "scikit-learn", "safetensors")
    versions = [("python", platform.python_version())]
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append((name, importlib.metadata.version(name)))
    return tuple(versions)


def _write_weights(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path)
    except safetensors.SafetensorError as error:  # safetensors reports errors of the file system in this way
        raise OSError(_errno_in(str(error)), str(error)) from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _errno_in(text: str) -> int:
    """Error number in Rust's text `No space left on device (os error 28)`; 5, an I/O error, without a number."""
    _, _, rest = text.partition("os error ")
    digits = rest.split(")")[0]
    return int(digits) if digits.isdecimal() else 5


def _take_name(temporary: Path, out: Path) -> None:
    """Rename a finished folder. An older one of that name moves aside first and is then deleted."""
    if not out.exists():
        temporary.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    out.rename(aside / out.name)
    temporary.rename(out)
    shutil.rmtree(aside, ignore_errors=True)
