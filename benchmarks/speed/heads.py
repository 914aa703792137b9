"""Fits of heads in a round, by kind of fit, and cells of `simulate` and `compare`, before and now.

    python benchmarks/speed/heads.py --before OLD                          # 100 and 500 labels
    python benchmarks/speed/heads.py --before OLD --labels 5000            # old: some minutes
    python benchmarks/speed/heads.py --before OLDER --cells                # cells of simulate and compare

Features are random with ten clusters, and their variance falls as that of a trunk's features. The heads are the
default's: four on 1,280 raw features and on 384 smoothed ones, and again for each of five folds of the calibrator.
Times are CPU time in one thread. With more than 1,000 labels, the older version fits one fold, and its time counts five
times.
"""

import argparse
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sides import Figures, compare_versions, cpu_seconds, report, table
from sklearn.datasets import load_digits
from torch import Tensor

from alloop.calibration.folds import draw_folds
from alloop.engine import cross_validate, fit_heads
from alloop.engine.build import HEAD_PRIOR, HEAD_STEPS, HeadRecipe
from alloop.engine.objective import Objective
from alloop.losses.multi_head import assign_specialties, class_weights
from alloop.losses.named import find_loss

N_CLASSES, N_HEADS, N_FOLDS = 10, 4, 5
KINDS = {"raw features": (1280, 5e-5), "smoothed features": (384, 1e-4)}
MANY = 1000  # labels from which the older version fits one fold
METHODS = ("SL1H", "4HML", "LS", "MC-dropout", "LogitNorm")
CELL_TARGETS = {"simulate, a cell": 2.0, **{f"compare, a cell of {name}": 2.0 for name in METHODS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="OLD", help="checkout of an older alloop")
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cells", action="store_true", help="measure cells of simulate and compare instead")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        report(measure_cells() if options.cells else {k: t for n in options.labels for k, t in measure_fits(n).items()})
        return
    if options.before is None:
        parser.error("name an older checkout: --before OLD")
    arguments = ["--cells"] if options.cells else ["--labels", *map(str, options.labels)]
    old, new = compare_versions(options.before, __file__, arguments, options.repeats)
    print(table(old, new, CELL_TARGETS, unit="s"))
    for n in () if options.cells else options.labels:
        ratios = (
            side[f"{n:,} labels, all fits"] / side[f"{n:,} labels, raw features, all images"] for side in (old, new)
        )
        print("{:,} labels: all fits / the one on raw features: {:.1f} before, {:.1f} now".format(n, *ratios))


# -- fits -------------------------------------------------------------------------------------------------------------


def measure_fits(n: int) -> Figures:
    """Return the CPU time of every kind of fit."""
    figures = {}
    for kind, (n_features, decay) in KINDS.items():
        for what, seconds in time_fits(*make_data(n, n_features), decay):
            figures[f"{n:,} labels, {kind}, {what}"] = seconds
    return figures | {f"{n:,} labels, all fits": sum(figures.values())}


def make_data(n: int, n_features: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, N_CLASSES, (n,), generator=generator)
    spread = torch.arange(1, n_features + 1) ** -0.5
    centers = torch.randn(N_CLASSES, n_features, generator=generator)
    return (torch.randn(n, n_features, generator=generator) + 0.35 * centers[targets]) * spread, targets


def time_fits(features: Tensor, targets: Tensor, decay: float) -> Iterator[tuple[str, float]]:
    specialties = assign_specialties(N_CLASSES, N_HEADS, torch.Generator().manual_seed(0))
    objective = Objective(find_loss(), class_weights(specialties, N_CLASSES), None, "mean")
    recipe = HeadRecipe(HEAD_STEPS, decay, HEAD_PRIOR, "mean")
    folds = [rest for rest, _ in draw_folds(targets.numpy(), 0, N_FOLDS)]
    fit = functools.partial(_fit_before if hasattr(cross_validate, "rotate") else _fit_now, objective, recipe)
    started = cpu_seconds()
    next_fit, start = fit(features, targets)
    yield "all images", cpu_seconds() - started
    few = folds[:1] if hasattr(cross_validate, "rotate") and len(targets) > MANY else folds
    started = cpu_seconds()
    for rest in few:
        next_fit(rest, start)
    yield "five folds", (cpu_seconds() - started) * len(folds) / len(few)


def _fit_now(objective: Objective, recipe: HeadRecipe, features: Tensor, targets: Tensor) -> Any:
    fits = fit_heads.HeadFits(features, targets, N_CLASSES)

    def fit(part: Tensor | None, start: Any) -> Any:
        return fits.fit(N_HEADS, objective, recipe, torch.Generator().manual_seed(1), part, start)[0]

    return fit, fit(None, None)


def _fit_before(objective: Objective, recipe: HeadRecipe, features: Tensor, targets: Tensor) -> Any:
    """Fit as alloop did before `HeadFits`: each fold for itself, on features that were rotated once."""
    rotate = functools.cache(lambda: cross_validate.rotate(features))

    def fit(rows: Tensor, labels: Tensor) -> Any:
        seed = torch.Generator().manual_seed(1)
        return fit_heads.fit_heads(rows, labels, N_CLASSES, N_HEADS, objective, recipe, seed)[0]

    return lambda part, _: fit(rotate()[part], targets[part]), fit(features, targets)


# -- cells ------------------------------------------------------------------------------------------------------------


def measure_cells() -> Figures:
    """Return the CPU time of a cell of `simulate`, and of one of `compare` for several methods."""
    with tempfile.TemporaryDirectory() as folder:
        return simulate_cell(Path(folder)) | compare_cells(Path(folder))


def simulate_cell(folder: Path) -> Figures:
    """Five rounds of 40 images among 600 with 1,280 features, measured on a test set."""
    from alloop.simulate import run

    features, targets = make_data(1000, 1280)
    for name, rows in (("pool", slice(0, 600)), ("test", slice(600, 1000))):
        np.savez(folder / f"{name}.npz", F=features[rows].numpy(), y=targets[rows].numpy())
    times = timed(run, "run_cell")
    command("simulate", "--features", folder / "pool.npz", "--test", folder / "test.npz", "--strategies", "entropy",
            "--seeds", 1, "--rounds", 5, "--batch", 40, "--jobs", 1, "--out", folder / "simulated")  # fmt: skip
    return {"simulate, a cell": sum(times)}


def compare_cells(folder: Path) -> Figures:
    """Fits to 200 of 500 digits, by a small trunk without training."""
    from alloop.simulate import compare

    digits = load_digits()
    for row, (pixels, digit) in enumerate(zip(digits.images[:500], digits.target, strict=False)):
        place = folder / "digits" / str(digit) / f"{row}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).convert("RGB").resize((32, 32)).save(place)
    (folder / "alloop.toml").write_text(
        '[project]\nclasses = ["0", "1"]\n[model]\nbackbone = "resnet18"\nweights = "none"\nimage_size = 32\n'
    )
    times = timed(compare, "_run")
    command("compare", "-C", folder, "--folder", folder / "digits", "-m", ",".join(METHODS), "--seeds", 1,
            "-n", 200, "--out", folder / "compared")  # fmt: skip
    return dict(zip((f"compare, a cell of {name}" for name in METHODS), times, strict=True))


def timed(module: Any, name: str) -> list[float]:
    """Return a list that receives the CPU time of each call of a function from now on."""
    function, times = getattr(module, name), []

    def call(*arguments: Any, **named: Any) -> Any:
        started = cpu_seconds()
        try:
            return function(*arguments, **named)
        finally:
            times.append(cpu_seconds() - started)

    setattr(module, name, call)
    return times


def command(*words: object) -> None:
    from alloop.cli.main import cli

    cli.main([str(word) for word in words], standalone_mode=False)


if __name__ == "__main__":
    main()
