"""Which device runs a job, and what to do when it has too little memory."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from alloop.errors import ConfigError

log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """The device for "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        ConfigError: The name is not a device, or this machine has none such; says what there is.
    """
    there = list_devices()
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if kind in there))
    if name not in there:
        raise ConfigError(
            f"There is no device {name!r} here; there is: {', '.join(there)}.",
            'Set [model] device (or --device) to one of them, or to "auto".',
        )
    return torch.device(name)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """The same operations give the same bits, as far as the device can; what cannot is said by a warning of torch's."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def list_devices() -> list[str]:
    """Names of what this machine can compute on."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*(["cuda"] if cuda else []), *cuda, *mps, "cpu"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may get through. MPS and the CPU allocator raise plain RuntimeErrors."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def in_halves(work: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
    """`work(items)` along dim 0, in two halves (again and again) where the device's memory does not suffice.

    Says so in the log. A single item that does not fit is an error.
    """
    try:
        return work(items)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(items) < 2:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    log.warning("out of memory with a batch of %d images: going on with %d", len(items), half)
    return torch.cat([in_halves(work, items[:half]), in_halves(work, items[half:])])
