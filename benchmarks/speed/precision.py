"""What bfloat16 does to accuracy: heads on features of TrashNet's photos in both precisions, half of them labeled.

    ALLOOP_DATA=FOLDER python benchmarks/speed/precision.py [--photos 600] [--device cpu]

The trunk is EfficientNet-Lite0 with trained weights, as in examples/trashnet. A CPU without bfloat16 needs minutes.
"""

import argparse
import csv
import hashlib
import os
import statistics
import tempfile
import zipfile
from pathlib import Path

import torch
from sides import HERE
from torch import Tensor

from alloop.config.schema import Config, TrainConfig
from alloop.engine.build import HEAD_DECAY, HEAD_PRIOR, HEAD_STEPS, HeadRecipe, build_hardware, build_loss
from alloop.engine.features import trunk_features
from alloop.engine.fit_heads import fit_heads
from alloop.engine.objective import Objective
from alloop.engine.settings import EngineSettings
from alloop.models.backbones import load_backbone
from alloop.records import ImageRef

DRAWS, PICKS = 5, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    backbone = load_backbone("backbone:efficientnet_lite0", search_paths=[HERE / "examples" / "trashnet"])
    hardware = build_hardware(
        EngineSettings.of(Config.model_validate({"project": {"classes": ["a", "b"]}})), options.device
    )
    with tempfile.TemporaryDirectory() as folder:
        refs, targets = photos(Path(folder), options.photos)
        full, half = (
            trunk_features(backbone.in_precision(kind), refs, hardware)[0] for kind in ("float32", "bfloat16")
        )
    gaps = (half - full).norm(dim=1) / full.norm(dim=1)
    print(f"difference of a photo's features: {gaps.median():.1%} of their length (median), {gaps.max():.1%} (most)\n")
    print("| trained on → measured on | accuracy % | NLL | predicted otherwise % | of 20 picks by margin, the same |")
    print("|---|---|---|---|---|")
    cells = [measure(full, half, targets, draw) for draw in range(DRAWS)]
    for name in cells[0]:
        means = [statistics.fmean(cell[name][column] for cell in cells) for column in range(4)]
        print(f"| {name} | {means[0]:.2f} | {means[1]:.4f} | {means[2]:.2f} | {means[3]:.1f} |")


def photos(folder: Path, n: int) -> tuple[list[ImageRef], Tensor]:
    """Unpack every k-th photo of TrashNet, so that all classes are there."""
    with zipfile.ZipFile(Path(os.environ["ALLOOP_DATA"]) / "trashnet.zip") as archive:
        rows = list(csv.DictReader(archive.read("labels.csv").decode().splitlines()))
        rows = rows[:: max(1, len(rows) // n)][:n]
        classes = sorted({row["label"] for row in rows})
        refs = []
        for number, row in enumerate(rows):
            path = Path(archive.extract(row["file"], folder))
            refs.append(ImageRef(number, hashlib.sha256(path.read_bytes()).hexdigest(), str(path)))
    return refs, torch.tensor([classes.index(row["label"]) for row in rows])


def measure(full: Tensor, half: Tensor, targets: Tensor, draw: int) -> dict[str, tuple[float, float, float, float]]:
    """Accuracy, NLL, share of other predictions and number of equal picks, for one draw of labels."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(draw))
    seen, rest = order[: len(order) // 2], order[len(order) // 2 :]
    settings = EngineSettings.of(Config.model_validate({"project": {"classes": ["a", "b"]}}))
    objective = Objective(build_loss(settings), None, None, TrainConfig().loss_scale)
    recipe = HeadRecipe(HEAD_STEPS, HEAD_DECAY, HEAD_PRIOR, "mean")

    def predict(known: Tensor, shown: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        heads, _ = fit_heads(known[seen], targets[seen], int(targets.max()) + 1, 1, objective, recipe, generator)
        with torch.no_grad():
            log_probs: Tensor = heads(shown[rest])[0].log_softmax(dim=-1)
        return log_probs

    ways = {"float32 → float32": (full, full), "bfloat16 → bfloat16": (half, half), "bfloat16 → float32": (half, full)}
    found = {name: predict(*way) for name, way in ways.items()}
    first = found["float32 → float32"]
    return {name: _row(log_probs, first, targets[rest]) for name, log_probs in found.items()}


def _row(log_probs: Tensor, first: Tensor, targets: Tensor) -> tuple[float, float, float, float]:
    guesses = log_probs.argmax(dim=1)
    other = float((guesses != first.argmax(dim=1)).float().mean()) * 100
    nll = float(torch.nn.functional.nll_loss(log_probs, targets))
    same = len(_picks(log_probs) & _picks(first))
    return float((guesses == targets).float().mean()) * 100, nll, other, float(same)


def _picks(log_probs: Tensor) -> set[int]:
    top = log_probs.exp().topk(2, dim=1).values
    return set((top[:, 0] - top[:, 1]).argsort()[:PICKS].tolist())


if __name__ == "__main__":
    main()
