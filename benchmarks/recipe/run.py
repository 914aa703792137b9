"""Compare recipes for heads on frozen features with logistic regression, at 40 to 600 labels, on three sets.

    ALLOOP_DATA=... python benchmarks/recipe/run.py --cache FOLDER
    python benchmarks/recipe/run.py --tables accuracy nll_calibrated

Features are computed once and kept in FOLDER. For each set, seed and number of labels, 200 random images are the
holdout (the temperature is fitted to it), the labels are a random sample of the rest, and up to 5,000 others measure
the model. Every method sees the same images.
"""

import argparse
import csv
import dataclasses
import hashlib
import io
import os
import statistics
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from torch import Tensor

from alloop.calibration.temperature import apply_temperature, fit_temperature
from alloop.engine.build import HEAD_DECAY, HEAD_PRIOR, HeadRecipe
from alloop.engine.fit_heads import fit_heads
from alloop.engine.objective import Objective
from alloop.evaluation.intervals import statistics_of
from alloop.evaluation.metrics import accuracy
from alloop.losses.multi_head import assign_specialties, class_weights
from alloop.losses.named import find_loss
from alloop.models.backbones import Backbone, load_backbone
from alloop.pool.pixels import decode
from alloop.predictive import mean_log_probs

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "trashnet"))

COUNTS, SEEDS, N_HOLDOUT, N_TEST = (40, 100, 200, 400, 600), range(5), 200, 5000
Predict = Callable[[np.ndarray], Tensor]  # features [N, D] → log-probabilities [N, K]


# -- features ---------------------------------------------------------------------------------------------------------


def read_zip(path: Path, table: str, limit: int | None) -> Iterator[tuple[np.ndarray, str]]:
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open(table))))[:limit]
        for row in rows:
            yield np.asarray(decode(archive.read(row["file"]))[0]), row["label"]


def read_digits() -> Iterator[tuple[np.ndarray, str]]:
    digits = load_digits()
    for image, target in zip(digits.images, digits.target, strict=True):
        yield np.repeat((image * 255 / 16).astype(np.uint8)[..., None], 3, axis=2), str(target)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A picture in memory, as a trunk asks for it."""

    picture: Image.Image

    def enough(self, needed: object) -> tuple[Image.Image, tuple[float, float, float, float]]:
        return self.picture, (0, 0, *self.picture.size)


def extract(images: Iterator[tuple[np.ndarray, str]], backbone: Backbone) -> tuple[np.ndarray, np.ndarray]:
    features, labels, pending = [], [], []

    def flush() -> None:
        with torch.inference_mode():
            features.append(backbone.module(backbone.normalize(torch.stack(pending))).numpy())
        pending.clear()

    for pixels, label in images:
        pending.append(backbone.preprocess(Whole(Image.fromarray(pixels))))
        labels.append(label)
        if len(pending) == 64:
            flush()
    if pending:
        flush()
    return np.concatenate(features), np.unique(labels, return_inverse=True)[1]


def load(name: str, data: Path, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    lite = "backbone:efficientnet_lite0"
    sources = {
        "trashnet": lambda: (read_zip(data / "trashnet.zip", "labels.csv", None), load_backbone(lite)),
        "cifar10": lambda: (read_zip(data / "cifar10.zip", "train.csv", 20_000), load_backbone(lite, image_size=112)),
        "digits": lambda: (read_digits(), load_backbone("pixels")),
        "digits-raw": lambda: (read_digits(), raw_pixels()),
    }
    images, backbone = sources[name]()
    key = hashlib.sha256(repr(backbone.fingerprint()).encode()).hexdigest()[:12]
    path = cache / f"{name}-{key}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        features, labels = extract(images, backbone)
        np.savez(path, features=features, labels=labels)
    stored = np.load(path)
    return stored["features"], stored["labels"]


def raw_pixels() -> Backbone:
    """Return the 64 gray values themselves, as a baseline for the built-in random filters."""

    class Flat(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=1).flatten(1)

    return dataclasses.replace(load_backbone("pixels"), module=Flat(), n_features=64)


# -- methods ----------------------------------------------------------------------------------------------------------


def heads(
    n_heads: int = 4, decay: float = HEAD_DECAY, prior: float = HEAD_PRIOR, scaling: str = "one"
) -> Callable[[np.ndarray, np.ndarray, int, int], Predict]:
    """Fit heads by alloop's recipe or a variation of it. "each": every feature is first scaled by its own spread."""

    def fit(x: np.ndarray, y: np.ndarray, n_classes: int, seed: int) -> Predict:
        generator = torch.Generator().manual_seed(seed)
        center, spread = standard(x) if scaling == "each" else (0, 1)
        parts = assign_specialties(n_classes, n_heads, generator)
        recipe = HeadRecipe(steps=200, weight_decay=decay, prior=prior, loss_scale="mean")
        features = torch.from_numpy(((x - center) / spread).astype(np.float32))
        objective = Objective(find_loss(), class_weights(parts, n_classes), None, "mean")
        fitted, _ = fit_heads(features, torch.from_numpy(y), n_classes, n_heads, objective, recipe, generator)

        def predict(rows: np.ndarray) -> Tensor:
            standardized = torch.from_numpy(((rows - center) / spread).astype(np.float32))
            return mean_log_probs(fitted(standardized).log_softmax(dim=-1))

        return predict

    return fit


def logistic(c: float | None) -> Callable[[np.ndarray, np.ndarray, int, int], Predict]:
    """Fit scikit-learn's model to features standardized one by one; None chooses C by cross-validated NLL."""

    def fit(x: np.ndarray, y: np.ndarray, n_classes: int, seed: int) -> Predict:
        center, spread = standard(x)
        fewest = np.bincount(y)[np.unique(y)].min()
        if c is None and fewest >= 2:
            # l1_ratios and use_legacy_attributes only silence a deprecation.
            model = LogisticRegressionCV(
                Cs=np.logspace(-5, 1, 13), cv=min(5, int(fewest)), scoring="neg_log_loss", max_iter=2000,
                l1_ratios=(0,), use_legacy_attributes=False,
            )  # fmt: skip
        else:
            model = LogisticRegression(C=c or 0.01, max_iter=2000)
        model.fit((x - center) / spread, y)

        def predict(rows: np.ndarray) -> Tensor:
            probs = np.zeros((len(rows), n_classes))
            probs[:, model.classes_] = model.predict_proba((rows - center) / spread)
            # A class without labels gets a probability above 0, because its NLL would be unbounded otherwise.
            probs = np.maximum(probs, 1e-4)
            return torch.from_numpy(np.log(probs / probs.sum(axis=1, keepdims=True)))

        return predict

    return fit


def standard(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spread = x.std(axis=0)
    return x.mean(axis=0), np.where(spread > 1e-6 * spread.max(), spread, 1)


METHODS = {
    "alloop (4 heads)": heads(),
    "1 head": heads(1),
    "2 heads": heads(2),
    "8 heads": heads(8),
    "decay 1e-5": heads(decay=1e-5),
    "decay 2e-5": heads(decay=2e-5),
    "decay 1e-4": heads(decay=1e-4),
    "decay 2e-4": heads(decay=2e-4),
    "no prior": heads(prior=0),
    "prior 1": heads(prior=1),
    "prior 10": heads(prior=10),
    "scale each feature": heads(scaling="each"),
    "logistic regression, C by CV": logistic(None),
    "logistic regression, C = 0.01": logistic(0.01),
}


# -- the comparison ---------------------------------------------------------------------------------------------------


def compare(name: str, x: np.ndarray, y: np.ndarray) -> Iterator[dict[str, object]]:
    n_classes = int(y.max()) + 1
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(y))
        holdout, rest = order[:N_HOLDOUT], order[N_HOLDOUT:]
        test = rest[max(COUNTS) :][:N_TEST]
        for n_labels in COUNTS:
            train = rest[:n_labels]
            for method, fit in METHODS.items():
                started = time.perf_counter()
                predict = fit(x[train], y[train], n_classes, seed)
                seconds = time.perf_counter() - started
                temperature = fit_temperature(predict(x[holdout]), torch.from_numpy(y[holdout]))[0].temperature
                before = predict(x[test])
                after = measure(apply_temperature(before.double(), temperature).numpy(), y[test])
                plain = measure(before.double().numpy(), y[test])
                yield {
                    "set": name, "seed": seed, "labels": n_labels, "method": method, "n_test": len(test),
                    **plain,
                    "nll_calibrated": after["nll"], "ece_calibrated": after["ece"],
                    "temperature": temperature, "seconds": seconds,
                }  # fmt: skip


def print_tables(path: Path, measures: list[str]) -> None:
    """Print means over seeds as Markdown, one table per measure."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    counts = sorted({int(row["labels"]) for row in rows})
    for measure_name in measures:
        print(f"\n| set | {measure_name} | " + " | ".join(map(str, counts)) + " |")
        print("|---|---|" + "---|" * len(counts))
        for name, method in dict.fromkeys((row["set"], row["method"]) for row in rows):
            cells = [
                statistics.mean(
                    float(row[measure_name])
                    for row in rows
                    if (row["set"], row["method"], int(row["labels"])) == (name, method, count)
                )
                for count in counts
            ]
            print(f"| {name} | {method} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")


def main() -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)  # every model gets 2,000 iterations, even if it needs more
    warnings.simplefilter("ignore", UserWarning)  # scikit-learn, on classes with fewer images than folds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("recipe-features"))
    parser.add_argument("--tables", nargs="+", help="only print tables of these columns of --out")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.csv"))
    parser.add_argument("--sets", nargs="+", default=["trashnet", "cifar10", "digits", "digits-raw"])
    arguments = parser.parse_args()
    if arguments.tables:
        print_tables(arguments.out, arguments.tables)
        return
    data = Path(os.environ.get("ALLOOP_DATA", "../shared/data"))
    torch.set_num_threads(1)
    with arguments.out.open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for name in arguments.sets:
            for row in compare(name, *load(name, data, arguments.cache)):
                if writer is None:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
                writer.writerow(rounded)
                file.flush()
            print(f"{name}: done", file=sys.stderr)


def measure(log_probs, targets) -> dict[str, float]:
    """Return accuracy, NLL and ECE."""
    statistics, whole = statistics_of(log_probs, targets), np.ones((1, len(targets)))
    found = {name: float(statistics[name](whole)[0]) for name in ("nll", "ece")}
    return {"accuracy": accuracy(np.exp(log_probs), targets), **found}


if __name__ == "__main__":
    main()
