"""A model version on disk: `model.safetensors` and `model.json`, written as a whole, checked before use."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from alloop.errors import ModelError
from alloop.files import explain_os_error, sha256_of, write_json
from alloop.losses.named import Loss, find_loss
from alloop.models.heads import MultiHead
from alloop.records import Calibration, ModelFiles

WEIGHTS, METADATA = "model.safetensors", "model.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ModelVersion:
    """A loaded model version.

    Attributes:
        heads: In eval mode, on the CPU.
        trunk: The trunk's state, by name; empty in frozen mode, where the trunk is as published.
        classes: Names in the order of the outputs.
        metadata: All of model.json.
    """

    heads: MultiHead
    trunk: Mapping[str, Tensor]
    classes: tuple[str, ...]
    calibration: Calibration
    metadata: Mapping[str, Any]

    @property
    def loss(self) -> Loss:
        """What it was trained with: it says what softmax is taken of."""
        train = self.metadata["config"]["train"]
        return find_loss(train.get("loss", "cross-entropy"), train.get("loss_parameters", {}))


def save_version(
    out: Path, heads: MultiHead, trunk: Mapping[str, Tensor], calibration: Calibration, metadata: Mapping[str, Any]
) -> ModelFiles:
    """Write a model version; the folder `out` appears as a whole or not at all, and replaces an earlier one.

    `model.json` holds the SHA-256 of the weights, and the version's own checksum is that of `model.json`: it proves
    both files.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    tensors = {f"heads.{name}": tensor for name, tensor in heads.state_dict().items()}
    tensors |= {f"trunk.{name}": tensor for name, tensor in trunk.items()}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise explain_os_error(error, out) from error
    try:
        _write_weights(tensors, temporary / WEIGHTS)
        whole = {
            **metadata,
            "format": FORMAT,
            "calibration": dataclasses.asdict(calibration),
            "weights_sha256": sha256_of(temporary / WEIGHTS),
        }
        write_json(temporary / METADATA, whole)
        checksum = sha256_of(temporary / METADATA)
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
        ModelError: It is missing, damaged, or of a newer alloop.
    """
    again = f"Train it again with `alloop train`; {files.folder} can be deleted."
    try:
        intact = sha256_of(files.folder / METADATA) == files.sha256
        metadata = json.loads((files.folder / METADATA).read_bytes()) if intact else {}
        intact = intact and sha256_of(files.folder / WEIGHTS) == metadata["weights_sha256"]
    except OSError as error:
        raise ModelError(f"The model in {files.folder} cannot be read: {error.strerror}.", again) from error
    if not intact:
        raise ModelError(f"The model in {files.folder} is damaged: its checksum does not match.", again)
    if metadata["format"] > FORMAT:
        raise ModelError(f"The model in {files.folder} was written by a newer alloop.", "Upgrade alloop.")
    tensors = safetensors.torch.load_file(files.folder / WEIGHTS)
    parts: dict[str, dict[str, Tensor]] = {"heads": {}, "trunk": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    n_heads, n_classes, n_features = parts["heads"]["weight"].shape
    heads = MultiHead(n_features, n_heads, n_classes)
    heads.load_state_dict(parts["heads"])
    heads.eval().requires_grad_(requires_grad=False)
    calibration = Calibration(**metadata["calibration"])
    return ModelVersion(heads, parts["trunk"], tuple(metadata["classes"]), calibration, metadata)


def library_versions() -> dict[str, str]:
    """Versions of what a model's numbers depend on."""
    names = ("alloop", "torch", "torchvision", "numpy", "scikit-learn", "safetensors")
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _write_weights(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path)
    except safetensors.SafetensorError as error:  # how safetensors reports what the file system refused
        raise OSError(_errno_in(str(error)), str(error)) from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _errno_in(text: str) -> int:
    """The number in Rust's `No space left on device (os error 28)`."""
    _, _, rest = text.partition("os error ")
    digits = rest.split(")")[0]
    return int(digits) if digits.isdigit() else 5


def _take_name(temporary: Path, out: Path) -> None:
    """Rename a finished folder; one that is there already moves aside first and is then deleted."""
    if not out.exists():
        temporary.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    out.rename(aside / out.name)
    temporary.rename(out)
    shutil.rmtree(aside, ignore_errors=True)
