"""alloop: from a folder of unlabeled images to a classifier a team can trust."""

import os

__version__ = "0.1.0"

# Without it matrix products on CUDA may differ from run to run. cuBLAS reads it once, so it is set before torch loads.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
