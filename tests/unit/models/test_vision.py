"""torchvision without PyTorch's compiler: absent after the import, and whole when somebody wants it."""

import subprocess
import sys

import pytest


def ended(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_all_that_trains_and_scores_does_without_the_compiler():
    program = """
import sys, torch
disable = torch.compiler.disable
import alloop.engine.executor_local, alloop.engine.score, alloop.engine.train, alloop.loop.rounds.steps
with alloop.engine.device.deterministic():
    torch.ones(2).sum()
print([name for name in sys.modules if name.startswith("torch._dynamo")], torch.compiler.disable is disable)
"""

    assert ended(program) == "[] True\n"


@pytest.mark.slow  # loads the compiler, which takes seconds
def test_the_compiler_and_what_torchvision_asks_of_it_work_afterwards():
    program = """
import torch
from alloop.models.vision import torchvision
from torchvision.ops import roi_align
import torch._dynamo.utils
ask = torchvision.ops.roi_align.__globals__["is_compile_supported"]
print(ask("cpu") == torch._dynamo.utils.is_compile_supported("cpu"))
image, box = torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
print(roi_align(image, box, 1).item())
"""

    # The mean of values 4 y + x at y, x = 0.5, 1.5, 2.5 and 3.5, which is cut to 3.
    assert ended(program).split() == ["True", str(4 * 1.875 + 1.875)]


@pytest.mark.slow
def test_a_compiler_that_is_loaded_already_stays():
    program = """
import sys, torch._dynamo.utils as utils
import alloop.models.vision
print(sys.modules["torch._dynamo.utils"] is utils)
"""

    assert ended(program) == "True\n"
