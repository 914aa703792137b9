"""TrashNet through the real loop: alloop's model against logistic regression on the same labels and features.

    python benchmarks/trashnet_loop/run.py [--seeds 5] [--out benchmarks/trashnet_loop]

Frozen EfficientNet-lite0 features, answers from the known classes, 10 rounds of 40 (the first one random) besides the
holdout. Both models are measured on the training images that were never asked about.
"""

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from alloop.engine.build import build_backbone, build_hardware, search_paths
from alloop.engine.executor_local import LocalExecutor
from alloop.engine.features import ensure_features
from alloop.engine.settings import EngineSettings
from alloop.evaluation.intervals import wilson
from alloop.files import sha256_of
from alloop.loop.intake.ingest import add_images
from alloop.loop.rounds.runner import RunOptions, run
from alloop.loop.workbench import make_tools, open_workbench
from alloop.loop.workspace import create_workspace
from alloop.project import open_project
from alloop.records import Split
from alloop.simulate.rest import accuracy_on_rest
from alloop.store.annotations import list_labels
from alloop.store.images import find_refs, list_refs
from alloop.store.session import reading

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ALLOOP_DATA", ROOT.parent / "shared" / "data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    # The example's backbone is imported as a user's own module would be.
    sys.path.insert(0, str(ROOT / "examples" / "trashnet"))
    with tempfile.TemporaryDirectory() as scratch:
        images, truth_file, truth = unpack(Path(scratch))
        rows = [
            measure(Path(scratch), images, truth_file, truth, strategy, seed)
            for seed in range(options.seeds)
            for strategy in ("entropy", "random")
        ]
    with (options.out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    report(rows)


def unpack(scratch: Path) -> tuple[Path, Path, dict[str, str]]:
    images, truth_file = scratch / "trashnet", scratch / "truth.csv"
    with zipfile.ZipFile(DATA / "trashnet.zip") as packed:
        rows = list(csv.DictReader(packed.read("labels.csv").decode().splitlines()))
        packed.extractall(images)
    truth = {sha256_of(images / row["file"]): row["label"] for row in rows}
    truth_file.write_text("sha256,label\n" + "".join(f"{key},{label}\n" for key, label in truth.items()))
    return images, truth_file, truth


def measure(
    scratch: Path, images: Path, truth_file: Path, truth: dict[str, str], strategy: str, seed: int
) -> dict[str, object]:
    folder = scratch / f"{strategy}-{seed}"
    classes = json.dumps(sorted(set(truth.values())))
    create_workspace(
        folder,
        f"""\
project = {{ name = "trashnet", classes = {classes}, seed = {seed} }}
model = {{ backbone = "backbone:efficientnet_lite0", weights = "none" }}
loop = {{ batch_size = 40, max_rounds = 10 }}
acquisition = {{ strategy = "{strategy}" }}
labeling = {{ backend = "oracle", oracle = {{ file = "{truth_file}" }} }}
""",
    )
    (scratch / "cache").mkdir(exist_ok=True)
    (folder / "cache").symlink_to(scratch / "cache")
    with open_project(folder) as project:
        tools = make_tools(project, LocalExecutor())
        with open_workbench(tools) as bench:
            add_images(bench, [str(images)])
        started = time.perf_counter()
        run(tools, RunOptions(rounds=None))
        seconds = time.perf_counter() - started
        ours = accuracy_on_rest(tools, truth)
        assert ours is not None, "the rounds use up the pool"
        theirs = logistic_regression(project, truth)
    row = {
        "strategy": strategy,
        "seed": seed,
        "labels": theirs.pop("labels"),
        "never_asked": ours.n,
        "alloop": round(ours.value, 4),
        "alloop_low": round(ours.low, 4),
        "alloop_high": round(ours.high, 4),
        **{name: round(value, 4) for name, value in theirs.items()},
        "loop_seconds": round(seconds, 1),
    }
    print(row, flush=True)
    return row


def logistic_regression(project, truth) -> dict[str, float]:
    """Fit logistic regression to the same training labels and features, and measure it on the same images."""
    with reading(project.database) as session:
        labels = list_labels(session, Split.TRAIN)
        refs = find_refs(session, [label.image_id for label in labels])
        rest = list_refs(session, Split.TRAIN, labeled=False)
    config = project.config
    backbone = build_backbone(EngineSettings.of(config), search_paths(project.paths.cache))
    train = [refs[label.image_id] for label in labels]
    cache, _ = ensure_features(
        [*train, *rest], backbone, project.paths.cache, build_hardware(EngineSettings.of(config), None)
    )
    x, y = cache.take([ref.sha256 for ref in train]), np.array([label.consensus.value for label in labels])
    x_rest, y_rest = cache.take([ref.sha256 for ref in rest]), np.array([truth[ref.sha256] for ref in rest])
    models = {
        "lr_c001": LogisticRegression(C=0.01, max_iter=2000),
        "lr_cv": LogisticRegressionCV(
            Cs=np.logspace(-4, 1, 6),
            cv=5,
            max_iter=2000,
            l1_ratios=(0,),
            scoring="accuracy",
            use_legacy_attributes=False,
        ),
    }
    scores = {
        name: float(make_pipeline(StandardScaler(), model).fit(x, y).score(x_rest, y_rest))
        for name, model in models.items()
    }
    return {"labels": len(y), **scores}


def report(rows: list[dict[str, object]]) -> None:
    print("\n| strategy | labels | alloop | LR C = 0.01 | LR C by CV | alloop - best LR | half width of one interval |")
    print("|---|---|---|---|---|---|---|")
    for strategy in ("entropy", "random"):
        mine = [row for row in rows if row["strategy"] == strategy]
        means = {key: statistics.fmean(row[key] for row in mine) for key in ("alloop", "lr_c001", "lr_cv")}
        noise = wilson(round(means["alloop"] * mine[0]["never_asked"]), mine[0]["never_asked"])
        best = max(means["lr_c001"], means["lr_cv"])
        shown = [f"{means[key]:.3f}" for key in ("alloop", "lr_c001", "lr_cv")]
        shown += [f"{means['alloop'] - best:+.3f}", f"{(noise.high - noise.low) / 2:.3f}"]
        print(f"| {strategy} | {mine[0]['labels']} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
