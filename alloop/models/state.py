"""Loading of weights from a local file: safetensors, or a .pth state dict, which is never unpickled freely."""

import pickle
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from alloop.errors import ModelError


def load_weights(module: nn.Module, path: Path, ignore: tuple[str, ...] = ()) -> None:
    """Load all weights of a module from a file.

    Args:
        module: Module whose weights are replaced.
        path: `.safetensors` file, or `.pth` / `.pt` state dict (an outer entry "state_dict" or "model" and a prefix
            "module." are understood).
        ignore: Names of submodules whose weights in the file are ignored (a removed classifier).

    Raises:
        ModelError: The file is missing or is not a state dict, or names or shapes do not match; says which.
    """
    state = {
        name: tensor
        for name, tensor in _read_state(path).items()
        if not any(name == part or name.startswith((part + ".", part + "1.", part + "2.")) for part in ignore)
    }
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [_list("missing", missing), _list("unknown", unexpected), _list("other shape", shapes)]
    if any(problems):
        raise ModelError(
            f"The weights in {path} do not fit the backbone: {'; '.join(filter(None, problems))}.",
            "Check that [model] backbone and weights belong together.",
        )
    module.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.", 'Set [model] weights to a file, "DEFAULT" or "none".')
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path} could not be read as weights: {reason}.",
            "It must be .safetensors, or a state dict saved with torch.save(module.state_dict(), ...).",
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} does not hold a state dict.", "Save one with torch.save(module.state_dict(), ...).")
    return {_current_name(name.removeprefix("module.")): tensor for name, tensor in content.items()}


def _current_name(name: str) -> str:
    """Return the present name of a DenseNet weight: published files use `norm.1` instead of `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", name)


def _list(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(names[:3])}{more}"
