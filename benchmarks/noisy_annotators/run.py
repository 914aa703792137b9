"""Test of the report with people who disagree: CIFAR-10N's three annotators in the real loop, 40 times.

    ALLOOP_DATA=... python benchmarks/noisy_annotators/run.py --work FOLDER [--runs 40] [--arms clean one three random]

FOLDER keeps images, features and finished runs; a second start continues where the first one stopped. Every run draws a
pool of 2,000 of the first 20,000 training images, and the loop draws a holdout of 200 and four batches of 50 from it.
The report's accuracy of the last model is compared with its accuracy on other images; README.md says which.
"""

import argparse
import collections
import csv
import datetime as dt
import io
import json
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "calibration"))
import data
import frozen

from alloop.calibration.folds import draw_folds
from alloop.config.load import parse_config, set_values
from alloop.engine.build import build_backbone, build_hardware
from alloop.engine.executor_local import LocalExecutor
from alloop.engine.features import ensure_features
from alloop.engine.jobs import ScoreJob, TrainJob
from alloop.engine.score_file import read_scores
from alloop.engine.settings import EngineSettings
from alloop.evaluation.intervals import wilson
from alloop.files import write_bytes, write_json
from alloop.labeling.simulated import SimulatedAnnotator
from alloop.loop.rounds.runner import RunOptions, run
from alloop.loop.workbench import make_tools
from alloop.loop.workspace import create_workspace
from alloop.pool.cache import FeatureCache
from alloop.pool.given import given_files
from alloop.project import Project, open_project
from alloop.records import ImageRef, Split
from alloop.store.annotations import list_labels
from alloop.store.images import add_apart, list_refs
from alloop.store.rounds import ModelRecord, find_last_model, list_metrics
from alloop.store.session import reading, transaction

N_IMAGES, N_POOL, BATCH, ROUNDS = 20_000, 2_000, 50, 4
PEOPLE = ("annotator1", "annotator2", "annotator3")
# Arm → people asked about an image (none: the truth answers), and the strategy (none: alloop's default).
ARMS = {"clean": (0, None), "one": (1, None), "three": (3, None), "random": (1, "random")}
PLACES = ("rest", "pool", "outside")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    here = options.work.absolute() / "noisy-annotators"
    prepare(options.work.absolute(), here)
    for seed in range(options.runs):
        for arm in options.arms:
            cell = here / "runs" / f"{arm}-{seed}.json"
            if not cell.exists():
                write_json(cell, measure(here, arm, seed))
                print(f"{arm} {seed}", file=sys.stderr, flush=True)
    # All finished runs, also of arms that another call computed.
    cells = [here / "runs" / f"{arm}-{seed}.json" for arm in ARMS for seed in range(options.runs)]
    rows = [json.loads(cell.read_text()) for cell in cells if cell.exists()]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    write_bytes(options.out / "results.csv", text.getvalue().encode())
    show(rows)


def prepare(work: Path, here: Path) -> None:
    """Write the features of all images, which workspaces share, and everybody's answers, once."""
    answers = here / "answers.csv"
    if answers.exists():
        return
    images = data.unpack({"train": data.read_zip("cifar10.zip", "train.csv", N_IMAGES)}, work / "cifar10")
    config = set_values(frozen.make_config(images.classes, frozen.SETS["cifar10"]), train={"workers": 0})
    data.warm(images.images, config, work / "cache")
    cache, _ = ensure_features(
        images.images,
        build_backbone(EngineSettings.of(config)),
        work / "cache",
        build_hardware(EngineSettings.of(config), None),
    )
    features = cache.take([image.sha256 for image in images.images])
    with zipfile.ZipFile(data.DATA / "cifar10.zip") as archive:
        table = {row["file"]: row for row in csv.DictReader(io.TextIOWrapper(archive.open("train.csv")))}
    files = given_files(features)
    named = [table["/".join(Path(image.path).parts[-2:])] for image in images.images]
    lines = [
        ",".join((file.sha256, *(row[column] for column in ("label", *PEOPLE))))
        for file, row in zip(files, named, strict=True)
    ]
    given = parse_config(settings(here, images.classes, 0, "clean"), "settings", {})
    shared = FeatureCache(
        here / "cache" / "features", build_backbone(EngineSettings.of(given)).fingerprint(), features.shape[1]
    )
    shared.add([file.sha256 for file in files], features)
    np.save(here / "features.npy", features)
    write_bytes(answers, "\n".join([",".join(("sha256", "label", *PEOPLE)), *lines, ""]).encode())


def settings(here: Path, classes: Sequence[str], seed: int, arm: str) -> str:
    """Return the alloop.toml of a run; settings that it does not name have their defaults."""
    n_people, strategy = ARMS[arm]
    asked = f"columns = {json.dumps(PEOPLE)}" if n_people else ""
    return f"""\
[project]
name = "noisy"
classes = {json.dumps(classes)}
seed = {seed}
[pool]
near_duplicates = false
[model]
backbone = "features:1280"
weights = "none"
device = "cpu"
[loop]
batch_size = {BATCH}
max_rounds = {ROUNDS}
[acquisition]
{f'strategy = "{strategy}"' if strategy else ""}
[evaluation]
matched_arm = false
[labeling]
backend = "oracle"
annotations_per_image = {max(1, n_people)}
[labeling.oracle]
file = {json.dumps(str(here / "answers.csv"))}
{asked}
"""


def measure(here: Path, arm: str, seed: int) -> dict[str, object]:
    """Run one project from its first batch to its last model, and measure this model."""
    started = time.perf_counter()
    files = given_files(np.load(here / "features.npy"))
    with (here / "answers.csv").open(newline="") as lines:
        truth = {row["sha256"]: row["label"] for row in csv.DictReader(lines)}
    with tempfile.TemporaryDirectory(dir=here) as folder:
        in_pool = set(np.random.default_rng([seed, 1]).permutation(len(files))[:N_POOL].tolist())
        outside = [ImageRef(N_IMAGES + n, file.sha256, file.path) for n, file in enumerate(files) if n not in in_pool]
        with begin(here, Path(folder) / "workspace", truth, arm, seed) as project:
            with transaction(project.database) as session:
                add_apart(session, [files[n] for n in sorted(in_pool)], dt.datetime.now(dt.UTC))
            run(make_tools(project, LocalExecutor()), RunOptions(rounds=None))
            loop_seconds = time.perf_counter() - started
            row = compare(project, outside, truth)
    return {"arm": arm, "run": seed, **row, "loop_seconds": loop_seconds, "seconds": time.perf_counter() - started}


def begin(here: Path, folder: Path, truth: dict[str, str], arm: str, seed: int) -> Project:
    create_workspace(folder, settings(here, sorted(set(truth.values())), seed, arm))
    (folder / "cache").symlink_to(here / "cache")
    return open_project(folder)


def compare(project: Project, outside: list[ImageRef], truth: dict[str, str]) -> dict[str, object]:
    """Return the report's accuracy, and the accuracy by the same people's answers and by the truth, in three places."""
    with reading(project.database) as session:
        model = find_last_model(session)
        said = list_metrics(session, model.id, "holdout")["accuracy"]
        labels = list_labels(session)
        never_asked = list_refs(session, Split.TRAIN, labeled=False)
    labels_of = {split: [one for one in labels if one.split is split] for split in (Split.TRAIN, Split.HOLDOUT)}
    learned = [ImageRef(one.image_id, one.sha256, str(one.path)) for one in labels_of[Split.TRAIN]]
    targets = np.array([project.config.project.classes.index(one.consensus.value) for one in labels_of[Split.TRAIN]])
    rest = predict(project, model, never_asked)
    places = {
        "rest": rest,
        "pool": rest | predict_unseen(project, learned, targets),
        "outside": predict(project, model, outside),
    }
    refs = {ref.sha256: ref for ref in (*never_asked, *learned, *outside)}
    people = make_tools(project, LocalExecutor()).annotator("")
    assert isinstance(people, SimulatedAnnotator)
    answers = {sha256: agreed([answer for _, answer in people.answers(ref)]) for sha256, ref in refs.items()}
    row: dict[str, object] = {
        "labels": len(learned),
        "holdout": said.n,
        "accuracy": said.value,
        "low": said.low,
        "high": said.high,
        "holdout_truth": share(truth[one.sha256] == one.consensus.value for one in labels_of[Split.HOLDOUT]),
        "labels_truth": share(truth[one.sha256] == one.consensus.value for one in labels_of[Split.TRAIN]),
    }
    for place, predicted in places.items():
        row[f"n_{place}"] = len(predicted)
        row[place] = share(answers[sha256] == name for sha256, name in predicted.items())
        row[f"{place}_truth"] = share(truth[sha256] == name for sha256, name in predicted.items())
    return row


def predict(project: Project, model: ModelRecord, refs: Sequence[ImageRef]) -> dict[str, str]:
    """Return the class that the model predicts for each content hash."""
    out = project.folder / "runs" / "measured.parquet"
    files = model.files(project.folder)
    scores = read_scores(
        LocalExecutor()
        .submit(ScoreJob(EngineSettings.of(project.config), files, tuple(refs), project.paths.cache, out))
        .path
    )
    return dict(zip(scores.sha256s, scores.predicted, strict=True))


def predict_unseen(project: Project, refs: Sequence[ImageRef], targets: np.ndarray) -> dict[str, str]:
    """Predict each training image by a model of the four fifths of them without it."""
    classes, predicted = project.config.project.classes, {}
    for number, (others, fold) in enumerate(draw_folds(targets, project.config.project.seed, 5)):
        others, fold = others.tolist(), fold.tolist()
        job = TrainJob(
            settings=EngineSettings.of(project.config),
            classes=classes,
            images=tuple(refs[n] for n in others),
            targets=tuple(targets[others].tolist()),
            holdout=tuple(refs[n] for n in fold),
            holdout_targets=tuple(targets[fold].tolist()),
            seed=project.config.project.seed,
            cache=project.paths.cache,
            out=project.folder / "runs" / f"fold-{number}",
        )
        raw = LocalExecutor().submit(job).holdout_pooled_log_probs
        for n, position in zip(fold, raw.argmax(axis=1).tolist(), strict=True):
            predicted[refs[n].sha256] = classes[position]
    return predicted


def agreed(answers: Sequence[str]) -> str:
    """Return the class with most votes, as alloop's consensus does; a tie goes to the person who was asked first."""
    return collections.Counter(answers).most_common(1)[0][0]  # equal counts keep the order of the answers


def share(right: Iterable[bool]) -> float:
    return statistics.fmean(right)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the tables of the README."""
    print("| arm | runs | report's accuracy | half width | " + " | ".join(f"covers {place}" for place in PLACES) + " |")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        cells = [arm, str(len(mine)), mean(mine, "accuracy")]
        cells.append(f"{100 * statistics.fmean((row['high'] - row['low']) / 2 for row in mine):.1f}")
        for place in PLACES:
            found = wilson(sum(row["low"] <= row[place] <= row["high"] for row in mine), len(mine))
            cells.append(f"{round(found.value * found.n)} [{100 * found.low:.0f}, {100 * found.high:.0f}] %")
        print("| " + " | ".join(cells) + " |")
    names = [name for place in PLACES for name in (place, f"{place}_truth")]
    print("\n| arm | answers that are true | " + " | ".join(names) + " |")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        print("| " + " | ".join([arm, mean(mine, "labels_truth"), *(mean(mine, name) for name in names)]) + " |")


def mean(rows: Sequence[dict[str, Any]], key: str) -> str:
    """Return mean and standard deviation over runs, in %."""
    values = [100 * row[key] for row in rows]
    return f"{statistics.fmean(values):.1f} ± {statistics.pstdev(values):.1f}"


if __name__ == "__main__":
    main()
