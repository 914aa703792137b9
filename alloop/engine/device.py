"""Choice of the device that runs a job, its numeric precision, and handling of too little memory."""

import contextlib
import functools
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alloop.errors import ConfigError, DeviceError
from alloop.records import Precision

log = logging.getLogger(__name__)

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the extra `onnx`
_OUT_OF_MEMORY = re.compile(
    "out of memory|can't allocate memory|_alloc_failed|allocation_failed|nvjpeg_status_allocator_failure"
    r"|nvjpeg\w* failed: 5\b",  # the same as a number
    re.IGNORECASE,
)
# On a full GPU these calls fail without mentioning memory, because no room is left for a handle or a workspace. The
# errors have other causes too: a smaller batch is tried, and if that fails the error is raised unchanged.
_MAYBE_OUT_OF_MEMORY = re.compile(
    r"cublas_status_not_initialized|cudnn_status_not_initialized|cudnn_status_internal_error"
    r"|unable to find an engine to execute this computation|no valid execution plans",
    re.IGNORECASE,
)


def choose_device(name: str) -> torch.device:
    """The device for "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        ConfigError: The name is not a device, or this machine has none such; says what there is.
    """
    there = list_devices()
    if name == "auto":
        chosen = next(kind for kind in ("cuda", "mps", "cpu") if kind in there)
        if chosen == "cpu":
            _say_why_not_cuda()
        return torch.device(chosen)
    if name not in there:
        reason = _why_not_cuda() if name.startswith("cuda") and "cuda" not in there else ""
        raise ConfigError(
            f"There is no device {name!r} here; there is: {', '.join(there)}. {reason}".rstrip(),
            'Set [model] device (or --device) to one of them, or to "auto".',
        )
    return torch.device(name)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Make the same operations give the same bits, as far as the device can. torch warns of operations that cannot.

    cuBLAS needs one more setting, which `alloop/__init__.py` makes before torch is loaded.
    """
    # `use_deterministic_algorithms` would set the same, and load PyTorch's whole compiler, which takes a second.
    before = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic  # a module whose one setting has no type
    fills = memory.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    # Otherwise every new tensor would be filled with nan before it is written, which finds faulty code, but takes time.
    memory.fill_uninitialized_memory = False
    try:
        with full_float32():
            yield
    finally:
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = fills


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 operations on CUDA in full float32, whatever the process has set.

    By default PyTorch rounds the inputs of convolutions to TF32: 10 bits of mantissa instead of 23. Features would
    then differ from the CPU's by about 1e-3 instead of 1e-6, although both share one cache. Mixed precision (bfloat16)
    is not changed.
    """
    settings = _tf32_settings()
    before = []
    for place, name, _ in settings:
        with contextlib.suppress(RuntimeError):  # an old name cannot be read where a new name says something else
            before.append((place, name, getattr(place, name)))
    for place, name, value in settings:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _tf32_settings() -> list[tuple[Any, str, object]]:
    """(Object, attribute, value) of each setting that turns TF32 off.

    The old names come first, since setting them also changes the new ones of torch 2.9. The old names alone are not
    enough: convolutions would follow `torch.backends.fp32_precision`.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    settings: list[tuple[Any, str, object]] = [(matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    if hasattr(cudnn, "conv"):
        settings += [(place, "fp32_precision", "ieee") for place in (matmul, cudnn.conv, cudnn.rnn)]
    return settings


def choose_precision(name: str, device: torch.device) -> Precision:
    """The precision for "auto" (bfloat16 on a CUDA card that has it, else float32), "float32" or "bfloat16" there.

    On a CPU auto is float32: many have no bfloat16, and there it takes many times as long.
    """
    if name == "bfloat16" and not has_bfloat16(device):
        _say_slow_bfloat16(str(device))
    is_half = name == "bfloat16" or (name == "auto" and device.type == "cuda" and has_bfloat16(device))
    return "bfloat16" if is_half else "float32"


def choose_onnx(engine: str, device: torch.device, precision: Precision) -> bool:
    """Return whether ONNX Runtime may run trunks: on a CPU in float32, by "auto" if it is installed.

    Raises:
        ConfigError: The engine is "onnxruntime", and the extra `onnx` is missing, or it does not run there.
    """
    is_possible = device.type == "cpu" and precision == "float32"
    if engine == "onnxruntime" and not is_possible:
        raise ConfigError(
            f"ONNX Runtime runs on a CPU in float32, and here features are computed on {device} in {precision}.",
            'Set [model] engine to "auto", or device to "cpu" and precision to "float32".',
        )
    if engine == "onnxruntime" and not has_onnx():
        raise ConfigError("ONNX Runtime is not installed.", "Install it: pip install 'alloop[onnx]'.")
    return engine != "torch" and is_possible and has_onnx()


def has_onnx() -> bool:
    """Return whether the extra `onnx` is installed: everything that writing and running an ONNX file needs."""
    return all(importlib.util.find_spec(name) is not None for name in ONNX_PACKAGES)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 itself, so that it is not slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # torch has these names since 2.6; without them the answer is no.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


@functools.cache
def _say_slow_bfloat16(device: str) -> None:
    log.warning(
        'The device %s has no bfloat16, so the trunk takes many times as long. [model] precision = "auto" or '
        '"float32" avoids this.',
        device,
    )


def list_devices() -> list[str]:
    """Return the names of the devices of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a driver that does not fit; `_why_not_cuda` reports it
        has_cuda = torch.cuda.is_available()
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if has_cuda else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*(["cuda"] if cuda else []), *cuda, *mps, "cpu"]


@functools.cache
def _say_why_not_cuda() -> None:
    """Warn once that the CPU is used although the machine has an NVIDIA GPU."""
    if reason := _why_not_cuda():
        log.warning("computing on the CPU: %s", reason)


def _why_not_cuda() -> str:
    """Reason why this machine's NVIDIA GPU cannot be used; "" without a GPU, or if CUDA_VISIBLE_DEVICES hides it."""
    if not _has_nvidia_driver() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # the latter if torch was built without CUDA
        reason = str(error).strip().splitlines()[0]
        return f"This machine has an NVIDIA card, but torch {torch.__version__} cannot use it: {reason}"
    return ""


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means too little memory. Only PyTorch's CUDA allocator has its own error class for it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


def may_fit_smaller(error: BaseException) -> bool:
    """Return whether the same work may succeed with a smaller batch."""
    return is_out_of_memory(error) or (
        isinstance(error, RuntimeError) and _MAYBE_OUT_OF_MEMORY.search(str(error)) is not None
    )


@contextlib.contextmanager
def explained_shortage() -> Iterator[None]:
    """Turn an out-of-memory error that smaller batches did not avoid into an error that says what to do.

    Raises:
        DeviceError: The device has too little memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # The rest of torch's text is about its allocator.
        reason = str(error).splitlines()[0].partition(" Including ")[0].rstrip(".")
        raise DeviceError(
            f"The device has too little memory, even for the smallest batch: {reason}. Features computed so far are "
            "kept.",
            "End other programs that use the device, set a smaller [model] backbone or [model] image_size, or use "
            "--device cpu.",
        ) from error


def release_memory() -> None:
    """Free the GPU memory that PyTorch keeps for reuse. Call it only when no exception holds tensors any more."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_halves(work: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
    """Return `work(items)`. If the memory of the device does not suffice, halve the items along dim 0, repeatedly.

    Each halving is logged. A single item that does not fit is an error.
    """
    try:
        return work(items)
    except RuntimeError as error:
        if not may_fit_smaller(error) or len(items) < 2:
            raise
    # Outside the except block, since the exception holds the tensors of the failed call.
    release_memory()
    half = len(items) // 2
    log.warning("out of memory with a batch of %d images: going on with %d", len(items), half)
    return torch.cat([in_halves(work, items[:half]), in_halves(work, items[half:])])
