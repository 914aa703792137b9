"""Export of a model version to a folder that other programs can use, checked against alloop's own numbers."""

import contextlib
import dataclasses
import io
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
from alloop.engine.device import full_float32, has_onnx
from alloop.engine.distill import load_distilled
from alloop.engine.exported_folder import (
    CLASSES,
    ONNX,
    PREPROCESS,
    PT2,
    describe_preprocessing,
    input_names,
    load_program,
)
from alloop.engine.exported_module import ExportedModel, SmoothedHeads, TrunkAndHeads
from alloop.engine.features import load_batches, trunk_features
from alloop.engine.jobs import ExportJob, ExportResult
from alloop.engine.model_files import ModelVersion, load_model
from alloop.engine.onnx_trunk import quiet_tracers
from alloop.engine.settings import EngineSettings
from alloop.errors import ModelError
from alloop.files import atomic_folder, check_new_folder, sha256_of, write_bytes, write_json
from alloop.losses.named import find_loss
from alloop.models.backbones import Backbone
from alloop.models.given import Given
from alloop.progress import Progress, silent
from alloop.records import ImageRef
from alloop.seeds import derive_seed
from alloop.smoothing.smoothing import Smoothing

Images = Sequence[UInt8[Tensor, "N 3 _ _"]]  # of each trunk, at its size
Run = Callable[[Images], Float[Tensor, "N K"]]

MOST = 1e-4  # largest difference in probability between a file and alloop
_AT_ONCE = 16  # images that the files are run on at once, for the check


def run_export(job: ExportJob, progress: Progress = silent) -> ExportResult:
    """Write the folder. It appears when every model file gives alloop's numbers for all images of the job.

    Raises:
        ModelError: There is no trunk or no distilled head, a trunk cannot be traced, a file gives other numbers, or no
            image can be read.
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
    backbone_name = str(settings.model.backbone)
    with atomic_folder(job.out) as folder:
        exported = _trace(module, images, backbone_name)
        torch.export.save(exported, folder / PT2)
        progress("export", 2, 4)
        if ONNX in names:
            _write_onnx(exported, images, input_names(backbone), folder / ONNX, backbone_name)
        progress("export", 3, 4)
        gaps = {name: _check(folder / name, images, expected, refs, version.classes) for name in names}
        write_bytes(folder / CLASSES, "".join(f"{name}\n" for name in version.classes).encode())
        if ONNX in names:
            write_bytes(folder / "predict.py", (Path(__file__).parent / "exported_predict.py").read_bytes())
        depth = version.metadata["depth"]
        write_json(folder / PREPROCESS, describe_preprocessing(backbone, depth, _digests(folder)))
        write_bytes(folder / "model-card.md", (job.card + _appendix(gaps, _digests(folder), len(refs))).encode())
    progress("export", 4, 4)
    return ExportResult(job.out, tuple(names), gaps, len(refs))


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


def _trace(module: ExportedModel, images: Images, backbone: str) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=65_536)
    with _explained(backbone, "torch.export"):
        return torch.export.export(module, _example(images), dynamic_shapes=(tuple({0: batch} for _ in images),))


def _example(images: Images) -> tuple[Tensor, ...]:
    """Return a batch of three images; a tracer would take a batch of one for a fixed size."""
    return tuple(part[[0, len(part) // 2, -1]] for part in images)


def _write_onnx(
    exported: torch.export.ExportedProgram, images: Images, names: Sequence[str], path: Path, backbone: str
) -> None:
    with _explained(backbone, "ONNX"):
        program: Any = torch.onnx.export(
            exported,
            _example(images),
            input_names=list(names),
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
    try:
        with quiet_tracers():
            yield
    except Exception as error:
        raise ModelError(
            f"The backbone {backbone} cannot be exported by {what}: "
            f"{str(error).strip().partition(chr(10))[0].rstrip('.')}.",
            "Its code must use tensors only, without Python branches on their values. Use another backbone, or predict "
            "with `alloop predict`.",
        ) from error


# -- checking ---------------------------------------------------------------------------------------------------------


def _pixels(refs: Sequence[ImageRef], backbone: Backbone, hardware: Hardware) -> tuple[Images, list[ImageRef]]:
    """Return the images that could be read, as the model takes them: at the size of each trunk."""
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
    return backbone.each_ones_images(torch.cat(parts)), read


def _own_numbers(model: Classifier, refs: Sequence[ImageRef], hardware: Hardware) -> Float[Tensor, "N K"]:
    """Return alloop's predictions of these images, as for images outside the pool."""
    if model.version.network.smoothed is None:
        return torch.cat([part.calibrated_log_probs for part in model.predict(refs)])
    features, _, _ = trunk_features(model.backbone, refs, hardware)
    return model.predict_features(features)


def _check(
    path: Path,
    images: Images,
    expected: Float[Tensor, "N K"],
    refs: Sequence[ImageRef],
    classes: Sequence[str],
) -> float:
    """Return the largest difference in probability between a file and alloop.

    Raises:
        ModelError: The difference is above 1e-4.
    """
    run = _RUNNERS[path.name](path)
    starts = range(0, len(refs), _AT_ONCE)
    found = torch.cat([run([part[start : start + _AT_ONCE] for part in images]) for start in starts])
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


def _run_pt2(path: Path) -> Run:
    loaded = load_program(path.read_bytes(), path)

    def run(images: Images) -> Tensor:
        with torch.inference_mode(), full_float32():
            found: Tensor = loaded(*images)
            return found

    return run


def _run_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda images: torch.from_numpy(
        session.run(None, {name: part.numpy() for name, part in zip(names, images, strict=True)})[0]
    )


_RUNNERS: Mapping[str, Callable[[Path], Run]] = {PT2: _run_pt2, ONNX: _run_onnx}


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def _appendix(gaps: Mapping[str, float], digests: Mapping[str, str], n: int) -> str:
    lines = ["", "## Check and digests", ""]
    lines += [
        f"- `{name}` was run on {n} images of the pool: its probabilities differ from alloop's by at most {gap:.1e}."
        for name, gap in gaps.items()
    ]
    lines += ["", "| file | SHA-256 |", "|---|---|", *(f"| {name} | `{digest}` |" for name, digest in digests.items())]
    return "\n".join(lines) + "\n"
