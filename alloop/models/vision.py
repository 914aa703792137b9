"""torchvision, imported in a tenth of the time: the rest of alloop takes `torchvision` and its transforms from here.

While it is imported, torchvision asks PyTorch's compiler (`torch._dynamo`) for two small things: a function that tells
whether the compiler supports a device, and a mark that keeps one function out of compiled code. To give them, PyTorch
loads the whole compiler, which takes as long as all other imports of a training run together. alloop compiles nothing.
So the compiler is replaced during this import, and loads as usual if anything asks for it later.
"""

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.compiler

_COMPILER = "torch._dynamo.utils"


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Replace the two parts of the compiler for the duration of the block. Does nothing if the compiler is loaded."""
    if _COMPILER in sys.modules:
        yield
        return
    mark = torch.compiler.disable
    stand_in: Any = types.ModuleType(_COMPILER)
    stand_in.is_compile_supported = _is_compile_supported
    sys.modules[_COMPILER] = stand_in
    torch.compiler.disable = _unmarked  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compiler.disable = mark
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]


def _is_compile_supported(device: Any) -> Any:
    """Ask the compiler itself. torchvision calls this only for regions of images, with deterministic operations."""
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device)


def _unmarked(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


with _without_compiler():
    import torchvision
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as transforms

__all__ = ["torchvision", "transforms", "v2"]
