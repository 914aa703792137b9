"""Trunks run by ONNX Runtime on the CPU, in a third to three quarters of PyTorch's time (benchmarks/speed).

A trunk becomes an ONNX file once, which is kept beside the features. Before each use, random pixels go through the file
and through PyTorch. If the features differ, or there is no file because the trunk cannot be traced, PyTorch runs it.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alloop.engine.device import ONNX_PACKAGES
from alloop.engine.trunk_passes import Trunk, prepare_trunk, run_trunk
from alloop.errors import WorkspaceError
from alloop.files import write_bytes
from alloop.models.backbones import Backbone

log = logging.getLogger(__name__)

MANY = 500  # images that are worth making the file, which takes as long as one to two hundred of them
SMALL = 100_000  # weights; a smaller trunk takes less time than the start of ONNX Runtime
TOLERANCE = 1e-4  # of the length of an image's features: what devices may differ by, too
INPUT = "normalized_images"


def prepare_with_onnx(backbone: Backbone, device: torch.device, folder: Path, n_images: int) -> Trunk:
    """Prepare a trunk for the CPU in float32: ONNX Runtime runs it if this is worth it and possible, else PyTorch.

    Args:
        backbone: The trunk.
        device: The CPU.
        folder: Folder of the ONNX files, made when it is needed.
        n_images: Number of images to run. A file that is there is used for any number, so that an interrupted
            computation goes on with the engine that it began with. It is made for many images only.
    """
    trunk = prepare_trunk(backbone, device)
    if not _gains(trunk.module):
        return trunk
    path = folder / f"{_key(backbone)}.onnx"
    refused = path.with_suffix(".refused.txt")  # why there is no file; it is not tried again
    if refused.exists() or (n_images < MANY and not path.exists()):
        return trunk
    is_new, why = not path.exists(), ""
    try:
        if is_new:
            write_bytes(path, _onnx_bytes(trunk.module, backbone.image_size))
        fast = dataclasses.replace(trunk, module=_OnnxModule(path), order=torch.contiguous_format)
        if (gap := _gap(trunk, fast)) <= TOLERANCE:
            return fast
        why = f"its features differ from PyTorch's by {gap:.0e} of their length"
    except (OSError, WorkspaceError) as error:  # a folder that may only be read, or a full disk
        log.info("PyTorch runs this trunk, because the file for ONNX Runtime cannot be kept: %s", error)
        return trunk
    except Exception as error:  # a tracer can raise anything, and so can a damaged file
        why = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    log.info("PyTorch runs this trunk, because ONNX Runtime cannot: %s.", why)
    path.unlink(missing_ok=True)
    if is_new:
        write_bytes(refused, f"{why}\n".encode())
    return trunk


class _OnnxModule(nn.Module):
    """ONNX file as a module: normalized images float32 [B, 3, S, S] to features float32 [B, D]."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait do not spin: other processes decode images on the same cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only
        self._session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        """Run the file."""
        return torch.from_numpy(self._session.run(None, {INPUT: images.contiguous().numpy()})[0])


def _gains(module: nn.Module) -> bool:
    """Return whether ONNX Runtime is faster: with convolutions that take in their batch normalization.

    Trunks without batch normalization (ViT, ConvNeXt) take 0.9 to 1.1 of PyTorch's time.
    """
    has_batch_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    return has_batch_norm and sum(weights.numel() for weights in module.parameters()) >= SMALL


def _key(backbone: Backbone) -> str:
    """Return a name that differs for another trunk and for other versions of what makes the file."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", *ONNX_PACKAGES)}
    text = json.dumps([backbone.fingerprint(), versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _onnx_bytes(module: nn.Module, side: int) -> bytes:
    example = (torch.zeros(2, 3, side, side),)
    batch = torch.export.Dim("batch", min=1, max=65_536)
    with quiet_tracers():
        exported = torch.export.export(module, example, dynamic_shapes=({0: batch},))
        program: Any = torch.onnx.export(
            exported, example, input_names=[INPUT], output_names=["features"], dynamo=True, verbose=False
        )
        buffer = io.BytesIO()
        program.save(buffer)
    return buffer.getvalue()


def _gap(one: Trunk, other: Trunk) -> float:
    """Return the largest difference between features of random pixels, as a share of the features' length."""
    side = one.backbone.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=generator)
    expected, found = run_trunk(one, pixels), run_trunk(other, pixels)
    gaps = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(torch.nan_to_num(gaps, nan=torch.inf).max())


@contextlib.contextmanager
def quiet_tracers() -> Iterator[None]:
    """Keep the many messages of tracers quiet for the duration of the block."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
