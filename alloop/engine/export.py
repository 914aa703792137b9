"""Export of a model version to a folder that other programs can use, checked against alloop's own numbers."""

import contextlib
import dataclasses
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from alloop.calibration.calibrator import Calibrator, Unchanged
from alloop.calibration.choose import from_json
from alloop.calibration.temperature import Temperature
from alloop.engine.build import Hardware, build_backbone, build_dropout, build_hardware, build_loss, search_paths
from alloop.engine.classifier import Classifier
from alloop.engine.device import full_float32
from alloop.engine.distill import load_distilled
from alloop.engine.exported_module import ExportedModel, SmoothedHeads, TrunkAndHeads
from alloop.engine.features import load_batches, trunk_features
from alloop.engine.jobs import ExportJob, ExportResult
from alloop.engine.model_files import ModelVersion, load_model
from alloop.engine.settings import EngineSettings
from alloop.errors import ModelError
from alloop.files import atomic_folder, check_new_folder, sha256_of, write_bytes, write_json
from alloop.losses.named import find_loss
from alloop.models.backbones import STRIP, Backbone
from alloop.models.given import Given
from alloop.pool.pixels import SPARE
from alloop.progress import Progress, silent
from alloop.records import ImageRef
from alloop.seeds import derive_seed
from alloop.smoothing.smoothing import Smoothing

MOST = 1e-4  # largest difference in probability between a file and alloop
PT2, ONNX = "model.pt2", "model.onnx"
_AT_ONCE = 16  # images that the files are run on at once, for the check
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def run_export(job: ExportJob, progress: Progress = silent) -> ExportResult:
    """Write the folder. It appears when every model file gives alloop's numbers for all images of the job.

    Raises:
        ModelError: There is no trunk or no distilled head, there are several trunks, a trunk cannot be traced, a file
            gives other numbers, or no image can be read.
        WorkspaceError: The folder is not empty, is a file, or cannot be written.
    """
    check_new_folder(job.out, "Name a new folder.")
    version = _with_fixed_masks(load_model(job.model))
    settings = version.as_trained(job.settings).with_precision("float32")  # the files compute in it
    hardware = build_hardware(settings, "cpu")
    backbone = build_backbone(settings, search_paths(job.cache))
    if isinstance(backbone.module, Given):
        raise ModelError(
            "This model was trained on given features, not on images, so there is no trunk to export.",
            "Export a model of a workspace that has images.",
        )
    if backbone.parts:
        raise ModelError(
            f"The model has {len(backbone.parts)} trunks side by side, each with its own size of images. Such a model "
            "cannot be exported yet.",
            "Train with one [model] backbone, or predict with `alloop predict`.",
        )
    model = Classifier(version, job.settings, job.cache, "cpu", pool=lambda: job.pool, precision="float32")
    images, refs = _pixels(job.images, backbone, hardware)
    progress("export", 0, 4)
    if job.is_distilled:
        head = load_distilled(job.model)
        expected = head.log_probs(trunk_features(backbone, refs, hardware)[0])
        module = ExportedModel([TrunkAndHeads(backbone, [head.as_heads()], find_loss())], Unchanged())
    else:
        expected = _own_numbers(model, refs, hardware)
        module = _build(version, settings, backbone, model.smoothing)
    progress("export", 1, 4)
    names = [PT2, ONNX] if has_onnx() else [PT2]
    with atomic_folder(job.out) as folder:
        exported = _trace(module, images, str(settings.model.backbone))
        torch.export.save(exported, folder / PT2)
        progress("export", 2, 4)
        if ONNX in names:
            _write_onnx(exported, images, folder / ONNX, str(settings.model.backbone))
        progress("export", 3, 4)
        gaps = {name: _check(folder / name, images, expected, refs, version.classes) for name in names}
        write_json(folder / "preprocess.json", describe_preprocessing(backbone, names))
        write_bytes(folder / "classes.txt", "".join(f"{name}\n" for name in version.classes).encode())
        if ONNX in names:
            write_bytes(folder / "predict.py", (Path(__file__).parent / "exported_predict.py").read_bytes())
        digests = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
        write_bytes(folder / "model-card.md", (job.card + _appendix(gaps, digests, len(refs))).encode())
    progress("export", 4, 4)
    return ExportResult(job.out, tuple(names), gaps, len(refs))


def has_onnx() -> bool:
    """Return whether everything that writing and checking ONNX needs is installed (the extra `onnx`)."""
    return all(importlib.util.find_spec(name) is not None for name in _NEEDED)


def describe_preprocessing(backbone: Backbone, names: Sequence[str]) -> dict[str, object]:
    """Return preprocess.json: what to do with an image, in numbers and in words."""
    shorter = backbone.image_size if backbone.resize is None else backbone.resize
    size = backbone.image_size
    resized = (
        f"Resize so that the shorter side has {shorter} pixels and the longer side int({shorter} * longer / shorter)."
        if shorter
        else f"Resize both sides to {size} pixels, which changes the proportions."
    )
    return {
        "image_size": size,
        "resize_shorter_side": shorter,
        "interpolation": backbone.interpolation,
        "antialias": backbone.interpolation != "nearest",
        "strip": STRIP,
        "jpeg_spare": SPARE,
        "colors": "RGB",
        "layout": "uint8 [B, 3, S, S]",
        "files": list(names),
        "steps": [
            f"Let the decoder reduce a JPEG of 8 bits in YCbCr or gray to 1/2, 1/4 or 1/8, as far as at least {SPARE} "
            "times the size of step 5 is left in both directions (not strips, and not for nearest).",
            "Turn the image upright, by its EXIF orientation.",
            "Put transparent images on white, and convert to RGB with 8 bits a channel.",
            f"If one side is more than {STRIP} times the other, cut out the middle of the longer side first.",
            f"{resized} Use the size before step 1. Interpolation: {backbone.interpolation}, with antialiasing.",
            f"Cut out the square of {size} pixels in the middle.",
            "The model takes these numbers from 0 to 255 as they are; it normalizes them itself.",
            "Its output is the natural logarithm of the calibrated probability of each class in classes.txt.",
        ],
    }


# -- building ---------------------------------------------------------------------------------------------------------


def _with_fixed_masks(version: ModelVersion) -> ModelVersion:
    """Return the version with the same dropout masks for all images: an exported file knows no content hashes."""
    stored = version.metadata["config"]
    model = {**stored["model"], "consistent_masks": True}
    return dataclasses.replace(version, metadata={**version.metadata, "config": {**stored, "model": model}})


def _build(
    version: ModelVersion, settings: EngineSettings, backbone: Backbone, smoothing: Smoothing | None
) -> ExportedModel:
    loss, dropout = build_loss(settings), build_dropout(settings)
    seed = derive_seed(int(version.metadata["seed"]), "dropout masks")
    networks = [version.load_network(number) for number in range(len(version.files))]

    def masks(n_features: int) -> Tensor | None:
        return None if dropout is None else dropout.fixed_masks(n_features, seed)

    parts, smoothed = [], None
    if version.trunk:
        for network in networks:
            backbone.module.load_state_dict(network.trunk)
            parts.append(TrunkAndHeads(backbone, [network.heads], loss, masks(backbone.n_features)))
    else:
        heads = [network.heads for network in networks]
        parts.append(TrunkAndHeads(backbone, heads, loss, masks(backbone.n_features)))
    others = [network.smoothed for network in networks if network.smoothed is not None]
    if smoothing is not None:
        smoothed = SmoothedHeads(smoothing, others, loss, masks(smoothing.n_features))
    return ExportedModel(parts, _calibrator(version), smoothed)


def _calibrator(version: ModelVersion) -> Calibrator:
    fitted = version.calibration.fitted
    return Temperature(version.calibration.temperature) if fitted is None else from_json(fitted).calibrator


def _trace(module: ExportedModel, images: UInt8[Tensor, "N 3 S S"], backbone: str) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch", min=1, max=65_536)}
    with _explained(backbone, "torch.export"):
        return torch.export.export(module, (_example(images),), dynamic_shapes=(batch,))


def _example(images: UInt8[Tensor, "N 3 S S"]) -> UInt8[Tensor, "3 3 S S"]:
    """Return a batch of three images; a tracer would take a batch of one for a fixed size."""
    return images[[0, len(images) // 2, -1]]


def _write_onnx(
    exported: torch.export.ExportedProgram, images: UInt8[Tensor, "N 3 S S"], path: Path, backbone: str
) -> None:
    with _explained(backbone, "ONNX"):
        program: Any = torch.onnx.export(
            exported,
            (_example(images),),
            input_names=["images"],
            output_names=["log_probs"],
            dynamo=True,
            verbose=False,
        )
        buffer = io.BytesIO()
        program.save(buffer)
    write_bytes(path, buffer.getvalue())


@contextlib.contextmanager
def _explained(backbone: str, what: str) -> Iterator[None]:
    """Turn an error of a tracer, which can be anything, into a ModelError, and keep its many messages quiet."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise ModelError(
            f"The backbone {backbone} cannot be exported by {what}: "
            f"{str(error).strip().partition(chr(10))[0].rstrip('.')}.",
            "Its code must use tensors only, without Python branches on their values. Use another backbone, or predict "
            "with `alloop predict`.",
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# -- checking ---------------------------------------------------------------------------------------------------------


def _pixels(
    refs: Sequence[ImageRef], backbone: Backbone, hardware: Hardware
) -> tuple[UInt8[Tensor, "N 3 S S"], list[ImageRef]]:
    """Return the images that could be read, as the model takes them."""
    parts, read, done = [], [], 0
    for batch in load_batches(refs, backbone, hardware):
        if len(batch.positions):
            parts.append(batch.images)
            read += [refs[position] for position in batch.positions.tolist()]
        done += len(batch.positions) + len(batch.failed)
    if not read:
        raise ModelError(
            f"None of the {len(refs)} images that the export is checked on can be read.",
            "`alloop pool check` says why.",
        )
    return torch.cat(parts), read


def _own_numbers(model: Classifier, refs: Sequence[ImageRef], hardware: Hardware) -> Float[Tensor, "N K"]:
    """Return alloop's predictions of these images, as for images outside the pool."""
    if model.version.network.smoothed is None:
        return torch.cat([part.calibrated_log_probs for part in model.predict(refs)])
    features, _, _ = trunk_features(model.backbone, refs, hardware)
    return model.predict_features(features)


def _check(
    path: Path,
    images: UInt8[Tensor, "N 3 S S"],
    expected: Float[Tensor, "N K"],
    refs: Sequence[ImageRef],
    classes: Sequence[str],
) -> float:
    """Return the largest difference in probability between a file and alloop.

    Raises:
        ModelError: The difference is above 1e-4.
    """
    run = _RUNNERS[path.name](path)
    found = torch.cat([run(images[start : start + _AT_ONCE]) for start in range(0, len(images), _AT_ONCE)])
    gaps = (found.exp() - expected.exp()).abs()
    gaps = torch.where(gaps.isfinite(), gaps, torch.full_like(gaps, torch.inf))
    worst = float(gaps.max())
    if worst > MOST:
        row, column = divmod(int(gaps.argmax()), gaps.shape[1])
        raise ModelError(
            f"{path.name} gives class '{classes[column]}' of {refs[row].path} the probability "
            f"{float(found[row, column].exp()):.6f}, and alloop gives {float(expected[row, column].exp()):.6f}. "
            f"{int((gaps.amax(dim=1) > MOST).sum())} of {len(refs)} images differ by more than {MOST:g}.",
            "Nothing was exported. The backbone may behave differently when it is traced.",
        )
    return worst


def _run_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    loaded = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode(), full_float32():
            found: Tensor = loaded(images)
            return found

    return run


def _run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


_RUNNERS: Mapping[str, Callable[[Path], Callable[[Tensor], Tensor]]] = {PT2: _run_pt2, ONNX: _run_onnx}


def _appendix(gaps: Mapping[str, float], digests: Mapping[str, str], n: int) -> str:
    lines = ["", "## Check and digests", ""]
    lines += [
        f"- `{name}` was run on {n} images of the pool: its probabilities differ from alloop's by at most {gap:.1e}."
        for name, gap in gaps.items()
    ]
    lines += ["", "| file | SHA-256 |", "|---|---|", *(f"| {name} | `{digest}` |" for name, digest in digests.items())]
    return "\n".join(lines) + "\n"
