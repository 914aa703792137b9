"""The folder that `alloop export-model` writes: what its files say, how it is read back, and what is refused."""

import dataclasses
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pydantic
import torch
from torch import nn

from alloop.errors import ModelError
from alloop.models.backbones import STRIP, Backbone, Interpolation, side_by_side
from alloop.pool.pixels import SPARE

PT2, ONNX, CLASSES, PREPROCESS = "model.pt2", "model.onnx", "classes.txt", "preprocess.json"
_AGAIN = "Write the folder again with `alloop export-model`."
# Parts of an archive that torch.export.load would unpickle or run: custom objects, old weights, machine code.
_PICKLED = re.compile(r"/(aotinductor/|constants/(custom_obj|opaque_obj)|(weights|constants)/[^/]+\.pt$)")


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedFolder:
    """Content of an exported folder's `preprocess.json`.

    Attributes:
        look: How images are prepared, for each trunk; the modules are empty.
        classes: Names of the classes, in the order of the model's outputs.
        depth: Bits at which images with more than 8 bits a channel are read; None: each at its own depth.
        program: The model, which takes the images of each trunk and gives log-probabilities.
    """

    look: Backbone
    classes: tuple[str, ...]
    depth: int | None
    program: nn.Module


class _Input(pydantic.BaseModel):
    name: str
    image_size: int = pydantic.Field(ge=1, le=10_000)
    resize_shorter_side: int = pydantic.Field(ge=0, le=20_000)
    interpolation: Interpolation
    strip: int = pydantic.Field(ge=STRIP, le=STRIP)  # these two are constants of alloop: others are of another version
    jpeg_spare: int = pydantic.Field(ge=SPARE, le=SPARE)


class _Preprocess(pydantic.BaseModel):
    inputs: tuple[_Input, ...] = pydantic.Field(min_length=1)
    depth: int | None = pydantic.Field(ge=1, le=64)
    sha256: dict[str, str]


def describe_preprocessing(backbone: Backbone, depth: int | None, digests: Mapping[str, str]) -> dict[str, object]:
    """Return preprocess.json: what to do with an image, in numbers and in words.

    Args:
        backbone: Trunk, or trunks side by side.
        depth: Bits at which the model's images with more than 8 bits a channel were read; None without such images.
        digests: File of the folder → SHA-256 of its bytes.
    """
    steps = [
        "Every input has its own numbers. If there are several, every image is prepared for each of them.",
        "Let the decoder reduce a JPEG of 8 bits in YCbCr or gray to 1/2, 1/4 or 1/8, as far as at least `jpeg_spare` "
        "times the size after resizing is left in both directions (not strips, and not for nearest).",
        "Turn the image upright, by its EXIF orientation.",
        "Put transparent images on white, and convert to RGB with 8 bits a channel.",
        "If one side is more than `strip` times the other, cut out the middle of the longer side first.",
        "Resize so that the shorter side has `resize_shorter_side` = s pixels and the longer side int(s * longer / "
        "shorter), by the size before the decoder reduced it. If s is 0, resize both sides to `image_size`, which "
        "changes the proportions. `antialias` says whether `interpolation` averages over pixels that fall together.",
        "Cut out the square of `image_size` pixels in the middle.",
        "The model takes these numbers from 0 to 255 as they are; it normalizes them itself.",
        "Its output is the natural logarithm of the calibrated probability of each class in classes.txt.",
    ]
    inputs = [
        {
            "name": name,
            "image_size": look.image_size,
            "resize_shorter_side": look.image_size if look.resize is None else look.resize,
            "interpolation": look.interpolation,
            "antialias": look.interpolation != "nearest",
            "strip": STRIP,
            "jpeg_spare": SPARE,
        }
        for name, look in zip(input_names(backbone), backbone.alone, strict=True)
    ]
    return {
        "inputs": inputs,
        "depth": depth,
        "colors": "RGB",
        "layout": "uint8 [B, 3, image_size, image_size]",
        "sha256": dict(digests),
        "steps": steps,
    }


def input_names(backbone: Backbone) -> list[str]:
    """Return the names of the model's inputs, one for each trunk."""
    n = len(backbone.alone)
    return ["images"] if n == 1 else [f"images_{number}" for number in range(1, n + 1)]


def read_folder(folder: Path) -> ExportedFolder:
    """Read an exported folder. Each file is compared with its digest, and nothing is unpickled.

    Raises:
        ModelError: A file is missing, damaged, or of another kind; or model.pt2 holds pickled objects or machine code.
    """
    rules = _read_rules(folder)
    names = _read(folder, CLASSES, rules.sha256).decode().splitlines()
    program = load_program(_read(folder, PT2, rules.sha256), folder / PT2)
    looks = [
        Backbone(nn.Identity(), 0, rule.image_size, rule.resize_shorter_side, interpolation=rule.interpolation)
        for rule in rules.inputs
    ]
    return ExportedFolder(side_by_side(looks), tuple(names), rules.depth, program)


def load_program(data: bytes, path: Path) -> nn.Module:
    """Load a program of torch.export from its bytes.

    torch.export.load would unpickle objects and run machine code that a file holds. alloop writes neither, so a file
    with such content is refused before it is loaded. Its operations are run: a model is a program.

    Args:
        data: Content of the file.
        path: Its name for messages.

    Raises:
        ModelError: The file is damaged, or holds pickled objects or machine code.
    """
    try:
        _refuse_pickles(data, path)
        return torch.export.load(io.BytesIO(data)).module()
    except ModelError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ModelError(f"{path} cannot be loaded: {_first_line(error)}.", _AGAIN) from error


def _read_rules(folder: Path) -> _Preprocess:
    path = folder / PREPROCESS
    try:
        return _Preprocess.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{folder} has no {PREPROCESS} that can be read, so it is not a folder of `alloop export-model`.",
            "Name such a folder; a workspace is opened with `alloop.open`.",
        ) from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the text"
        raise ModelError(f"{path} is damaged, or of another alloop: {place}: {first['msg']}.", _AGAIN) from error


def _read(folder: Path, name: str, digests: Mapping[str, str]) -> bytes:
    """Return the bytes of a file that has the digest that preprocess.json names."""
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder} has no {name} that can be read.", _AGAIN) from error
    if hashlib.sha256(data).hexdigest() != digests.get(name):
        raise ModelError(f"{folder / name} is damaged or was changed: its SHA-256 differs.", _AGAIN)
    return data


def _refuse_pickles(data: bytes, path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        configs = [json.loads(archive.read(name))["config"] for name in names if name.endswith("_config.json")]
        examples = [archive.read(name) for name in names if "/sample_inputs/" in name]
    if any(map(_PICKLED.search, names)) or any(one["use_pickle"] for config in configs for one in config.values()):
        raise ModelError(f"{path} holds pickled objects or machine code, so it is not loaded.", _AGAIN)
    for example in examples:
        torch.load(io.BytesIO(example), weights_only=True)  # torch.export.load would go on without this limit


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
