"""Part M: the machine that the other parts ran on."""

import os
import platform
import subprocess
import sys

import numpy
import PIL
import torch
import torchvision
from rows import Rows, parse

from alloop.engine.device import choose_device


def main() -> None:
    options = parse(__doc__)
    rows = Rows(options.out, "M")
    choose_device(str(options.device))  # ends with a clear error if the device is missing
    name = torch.cuda.get_device_name(options.device) if options.is_cuda else f"{platform.machine()} CPU"
    rows.add("device", "name", name)
    if options.is_cuda:
        properties = torch.cuda.get_device_properties(options.device)
        rows.add("device", "memory", properties.total_memory / 2**30, "GiB")
        rows.add("device", "driver", driver())
        rows.add("device", "CUDA of PyTorch", str(torch.version.cuda))
        rows.add("device", "cuDNN", str(torch.backends.cudnn.version()))
    rows.add("host", "cores", float(len(os.sched_getaffinity(0))))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    rows.add("host", "memory", memory, "GiB")
    versions = {"torch": torch, "torchvision": torchvision, "numpy": numpy, "Pillow": PIL}
    known = [f"{name} {module.__version__}" for name, module in versions.items()]
    rows.add("host", "versions", f"Python {sys.version.split()[0]}, {', '.join(known)}")
    if options.tiny:
        rows.add("run", "kind", "tiny", note="A rehearsal: the sizes are toys and the figures mean nothing.")


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown (nvidia-smi does not answer)"


if __name__ == "__main__":
    main()
