"""Fine-tuning that also learns from unlabeled images, against fine-tuning with the same labels only.

    ALLOOP_DATA=... OMP_NUM_THREADS=1 python benchmarks/recipe/pseudo_labels.py --work FOLDER
    python benchmarks/recipe/pseudo_labels.py --work FOLDER --tables    # tables of the finished runs; computes nothing

A small network trained from scratch on Fashion-MNIST, and EfficientNet-Lite0 on TrashNet at a small size. FOLDER keeps
images and finished runs; the same command continues after a stop. The arms:

- `labels`: fine-tuning that learns from labels only, with the epochs of the scene and a patience of 10 epochs.
- `longer`: the same, with as many updates as the three arms below. What those gain must be more than this.
- `hard`, `soft`: pseudo-labels. First, the guarded heads with pool features (docs/methods.md, section 13) predict the
  unlabeled images of the pool. TrashNet: on the features of the published trunk. From scratch there are none, so these
  heads use the features of the network that `labels` has trained. `hard` adds each image whose calibrated probability
  is at least 0.9, with the predicted class; `soft` adds all unlabeled images, with the probabilities as targets.
- `consistency`: `[train] unlabeled = "on"`, FixMatch. Every update takes unlabeled images, too, as many as labeled
  ones: where the network gives a class 0.95 or more in a view, it learns this class in a changed copy of the view.
- `default labels`, `default consistency`: the same two with alloop's own number of epochs and patience: 640 updates.
- `guarded heads`: the heads that make the pseudo-labels; not an arm, nothing is fine-tuned on top of them.

All arms use alloop's own code: its loop over epochs, early stopping on a part of the labels, and the temperature that
is fitted to the holdout. The measured images are not in the pool.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from finetune import measure
from torch import Tensor

from alloop.config.load import set_values, validate_config
from alloop.config.schema import Config
from alloop.engine.build import build_backbone
from alloop.engine.classifier import Classifier
from alloop.engine.finetune import Labeled, Setup
from alloop.engine.finetune import finetune as plain_finetuning
from alloop.engine.jobs import ScoreJob, TrainJob, TrainResult
from alloop.engine.score import run_score
from alloop.engine.score_file import read_log_probs
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.files import write_json
from alloop.losses.mixing import as_soft
from alloop.pool.cache import FeatureCache
from alloop.records import ImageRef

sys.path.insert(0, str(Path(__file__).parents[1] / "calibration"))
import data  # of benchmarks/calibration

N_HOLDOUT = 200
SURE_ENOUGH = 0.9  # calibrated probability of a hard pseudo-label
ARMS = ("labels", "longer", "hard", "soft", "consistency", "default labels", "default consistency")
REFERENCE = "guarded heads"
METRICS = {"accuracy": (100, 2, "points"), "nll": (1, 3, "nats"), "ece": (100, 2, "points")}


@dataclasses.dataclass(frozen=True)
class Scene:
    """A set and how its network is trained.

    Attributes:
        model: Section [model].
        train: Section [train] of all arms; its epochs are those of `labels`.
        n_labels: Labels, a part of which early stopping watches.
        n_pool: Images of the pool, labeled ones and the holdout among them; None: all that are not measured.
        n_test: Measured images.
        updates: Updates of `longer`, `hard`, `soft` and `consistency`.
    """

    model: dict[str, object]
    train: dict[str, object]
    n_labels: int
    n_pool: int | None
    n_test: int
    updates: int

    @property
    def is_scratch(self) -> bool:
        return str(self.model["backbone"]).startswith("scratch")


SCENES = {
    "fashion-mnist": Scene(
        {"backbone": "scratch:small_network", "weights": "none"},
        {"epochs": 30, "batch_size": 64, "learning_rate": 1e-2},
        n_labels=300, n_pool=5_000, n_test=4_000, updates=900,
    ),
    "trashnet": Scene(
        {"backbone": "backbone:efficientnet_lite0", "weights": "none", "image_size": 64},
        {"epochs": 12},
        n_labels=300, n_pool=None, n_test=1_000, updates=160,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Parts:
    """Positions of the images of a set, drawn with the seed: no image is in two parts."""

    holdout: list[int]
    labeled: list[int]
    unlabeled: list[int]
    test: list[int]


class Bench:
    """One set with one seed: jobs that differ only in what is learned from the unlabeled images."""

    def __init__(self, name: str, seed: int, work: Path) -> None:
        self.scene, self.seed, self.work = SCENES[name], seed, work
        is_split = name == "fashion-mnist"
        images = data.load(name, work, self.scene.n_test if is_split else None, self.scene.n_pool or 0)
        self.classes = images.classes
        self.refs, self.targets = images.images, [images.classes.index(label) for label in images.labels]
        self.parts = self._draw(images)
        self.folder = work / "pseudo-labels" / f"{name}-{seed}"
        base = {"project": {"classes": self.classes}, "model": {**self.scene.model, "device": "cpu"}}
        self.config = validate_config({**base, "train": {"workers": 0, **self.scene.train}}, "benchmark")

    def _draw(self, images: data.ImageSet) -> Parts:
        generator, measured = np.random.default_rng(self.seed), images.positions("test")
        if len(measured):
            pool = generator.permutation(images.positions("train"))
        else:
            order = generator.permutation(len(images.images))
            measured, pool = order[: self.scene.n_test], order[self.scene.n_test :]
        end = N_HOLDOUT + self.scene.n_labels
        cuts = pool[:N_HOLDOUT], pool[N_HOLDOUT:end], pool[end:], measured
        return Parts(*(part.tolist() for part in cuts))

    def images(self, positions: Sequence[int]) -> tuple[ImageRef, ...]:
        return tuple(self.refs[place] for place in positions)

    def job(self, config: Config, name: str, cache: Path) -> TrainJob:
        parts = self.parts
        return TrainJob(
            settings=EngineSettings.of(config),
            classes=self.classes,
            images=self.images(parts.labeled),
            targets=tuple(self.targets[place] for place in parts.labeled),
            holdout=self.images(parts.holdout),
            holdout_targets=tuple(self.targets[place] for place in parts.holdout),
            seed=self.seed,
            cache=cache,
            out=self.folder / name,
            pool=self.images([*parts.holdout, *parts.labeled, *parts.unlabeled]),
            is_kept=False,
        )

    def run(self, arm: str) -> dict[str, object]:
        """Train and measure one arm. "seen" are the images of the pool without a label."""
        started = time.process_time()
        extra, n_extra = contextlib.nullcontext(), 0
        if arm in ("hard", "soft"):
            rows, targets = self._pseudo_labels(arm)
            extra, n_extra = with_pseudo_labels(self.images(rows), targets), len(rows)
        config = self._settings(arm, n_extra)
        with extra:
            trained = run_train(self.job(config, arm, self.work / "cache"))
        seconds = time.process_time() - started
        found = self._measured(config, trained, arm, self.parts.test)
        seen = self._measured(config, trained, f"{arm} seen", self.parts.unlabeled)
        found |= {f"seen {name}": value for name, value in seen.items()}
        history = {key: trained.history[key] for key in ("best_epoch", "n_train")}
        return {**found, **history, "epochs": len(trained.history["epochs"]), "seconds": seconds}

    def guarded(self) -> dict[str, object]:
        """Measure the guarded heads. Their predictions of the unlabeled images stay in a file."""
        config, cache = self.config, self.work / "cache"
        if self.scene.is_scratch:
            config, cache = self._trained_features()
        config = set_values(config, train={"epochs": None, "batch_size": None, "learning_rate": None})
        trained = run_train(self.job(config, "guarded", cache))
        a, b = trained.calibration.weights or (math.nan, math.nan)
        unlabeled = self._predicted(config, trained, "guarded-unlabeled", self.parts.unlabeled, cache)
        np.save(self.folder / "unlabeled.npy", unlabeled)
        truth = np.array(self.targets)[self.parts.unlabeled]
        is_sure = unlabeled.max(axis=1) >= math.log(SURE_ENOUGH)
        right = unlabeled.argmax(axis=1) == truth
        about = {"a": a, "b": b, "n_sure": int(is_sure.sum()), "right_if_sure": float(right[is_sure].mean())}
        return {**self._measured(config, trained, "guarded", self.parts.test, cache), **about}

    def _settings(self, arm: str, n_extra: int) -> Config:
        if arm.startswith("default"):
            train: dict[str, object] = {"epochs": None}
        elif arm == "labels":
            train = {"patience": 10}
        else:
            epochs = self._epochs(n_extra)
            train = {"epochs": epochs, "patience": epochs}
        unlabeled = "on" if arm.endswith("consistency") else "off"
        return set_values(self.config, model={"mode": "finetune"}, train={**train, "unlabeled": unlabeled})

    def _epochs(self, n_extra: int) -> int:
        share = float(self.config.train.validation_share)
        batch = self.config.train.batch_size or 32
        per_epoch = math.ceil((self.scene.n_labels * (1 - share) + n_extra) / batch)
        return max(1, round(self.scene.updates / per_epoch))

    def _pseudo_labels(self, arm: str) -> tuple[list[int], Tensor]:
        log_probs = torch.from_numpy(np.load(self.folder / "unlabeled.npy")).float()
        if arm == "soft":
            return self.parts.unlabeled, log_probs.softmax(dim=1)
        confidence, classes = log_probs.max(dim=1)
        sure = torch.nonzero(confidence >= math.log(SURE_ENOUGH)).flatten()
        rows = [self.parts.unlabeled[place] for place in sure.tolist()]
        return rows, as_soft(classes[sure], len(self.classes))

    def _trained_features(self) -> tuple[Config, Path]:
        """Return settings and cache for the features of the network that `labels` has trained."""
        config = self._settings("labels", 0)
        files = run_train(self.job(config, "first", self.work / "cache")).files
        model = Classifier.open(files, EngineSettings.of(config), self.work / "cache", None)
        parts = self.parts
        everything = self.images([*parts.holdout, *parts.labeled, *parts.unlabeled, *parts.test])
        pairs = list(model.features(everything))
        keys, rows = [ref.key for refs, _ in pairs for ref in refs], torch.cat([rows for _, rows in pairs])
        frozen = {"backbone": f"features:{rows.shape[1]}", "weights": "none", "mode": "frozen"}
        config, cache = set_values(self.config, model=frozen), self.folder / "cache"
        backbone = build_backbone(EngineSettings.of(config))
        kept = FeatureCache(cache / "features", backbone.fingerprint(), rows.shape[1])
        if kept.missing(keys):
            kept.add(keys, rows.numpy())
        return config, cache

    def _measured(
        self, config: Config, trained: TrainResult, name: str, positions: Sequence[int], cache: Path | None = None
    ) -> dict[str, float]:
        log_probs = self._predicted(config, trained, name, positions, cache or self.work / "cache")
        return measure(log_probs.astype(np.float64), np.array(self.targets)[positions])

    def _predicted(
        self, config: Config, trained: TrainResult, name: str, positions: Sequence[int], cache: Path
    ) -> np.ndarray:
        """Return calibrated log p̄ [N, K]."""
        path = self.folder / f"{name}.parquet"
        run_score(ScoreJob(EngineSettings.of(config), trained.files, self.images(positions), cache, path))
        return np.concatenate([rows.numpy() for _, rows in read_log_probs(path)])


@contextlib.contextmanager
def with_pseudo_labels(images: Sequence[ImageRef], targets: Tensor) -> Iterator[None]:
    """Add images with targets [N, K] to the part that fine-tuning learns from; early stopping does not see them."""

    def more(setup: Setup, train: Labeled, validation: Labeled, *others: object) -> dict[str, object]:
        known = as_soft(train.targets, targets.shape[1]).float()
        whole = Labeled([*train.images, *images], torch.cat([known, targets]))
        return {**plain_finetuning(setup, whole, validation, *others), "n_train": len(train)}

    with mock.patch("alloop.engine.train.finetune", more):
        yield


def finished(path: Path, make: Callable[[], dict[str, object]]) -> dict[str, object]:
    """Return the run in a file; make it first if there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
        print(path.stem, json.loads(path.read_text()), flush=True)
    return json.loads(path.read_text())


def tables(lines: Sequence[dict[str, object]]) -> str:
    """Return a table for each set: means over seeds, and differences to `labels` and `longer`, paired by seed."""
    text = []
    for name in dict.fromkeys(str(line["set"]) for line in lines):
        here = [line for line in lines if line["set"] == name]
        found = {arm: {line["seed"]: line for line in here if line["arm"] == arm} for arm in (*ARMS, REFERENCE)}
        text += [f"\n{name}:\n", "| arm | seeds | accuracy % | NLL | ECE % | − labels: accuracy, NLL | − longer | s |"]
        text.append("|---" * 8 + "|")
        for arm, runs in found.items():
            if not runs:
                continue
            means = [f"{scale * _mean(runs, key):.{digits}f}" for key, (scale, digits, _) in METRICS.items()]
            gaps = [_gap(runs, found[other]) if arm != other else "" for other in ("labels", "longer")]
            seconds = f"{_mean(runs, 'seconds'):.0f}" if arm in ARMS else ""
            text.append("| " + " | ".join([arm, str(len(runs)), *means, *gaps, seconds]) + " |")
    return "\n".join(text)


def _mean(runs: dict[object, dict[str, object]], key: str) -> float:
    return float(np.mean([run[key] for run in runs.values()]))


def _gap(mine: dict[object, dict[str, object]], others: dict[object, dict[str, object]]) -> str:
    """Return the differences of each seed in accuracy (points), and their mean in NLL with the number of lower ones."""
    seeds = sorted(set(mine) & set(others))
    if not seeds:
        return ""
    points = [100 * (float(mine[seed]["accuracy"]) - float(others[seed]["accuracy"])) for seed in seeds]
    nats = [float(mine[seed]["nll"]) - float(others[seed]["nll"]) for seed in seeds]
    shown = ["; ".join(f"{value:+.{digits}f}" for value in values) for values, digits in ((points, 1), (nats, 3))]
    return f"{np.mean(points):+.1f} ({shown[0]}), {np.mean(nats):+.3f} ({shown[1]})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tables", action="store_true", help="only print the tables of finished runs")
    parser.add_argument("--out", type=Path, help="file for all numbers; else FOLDER/pseudo_labels.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = options.work.absolute()
    lines: list[dict[str, object]] = []
    for seed, name in itertools.product(options.seeds, options.sets):
        bench: Callable[[], Bench] = functools.cache(functools.partial(Bench, name, seed, work))
        for arm in (REFERENCE, *options.arms):
            path = work / "pseudo-labels" / f"{name}-{seed}" / f"{arm.replace(' ', '-')}.json"
            if options.tables and not path.exists():
                continue
            run = bench
            made = finished(path, lambda arm=arm, run=run: run().guarded() if arm == REFERENCE else run().run(arm))
            lines.append({"set": name, "seed": seed, "arm": arm, **made})
    columns = dict.fromkeys(itertools.chain.from_iterable(lines))
    with (options.out or work / "pseudo_labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow({key: round(v, 5) if isinstance(v, float) else v for key, v in line.items()})
    print(tables(lines))


if __name__ == "__main__":
    main()
