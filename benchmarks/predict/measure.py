"""Throughput of `alloop predict --pool` against `alloop score` on the same images, in one run.

    python benchmarks/predict/measure.py [--photos 600] [--pictures 10000] [--repeats 3]

Two cases: photos of TrashNet through EfficientNet-lite0, nothing cached; and pictures of CIFAR-10 whose features are
cached, so that reading features, heads and writing are all that is left. The work of both commands is done in turns in
one process, without their start. Seconds are those of the processor, because other programs may share it.
Needs ALLOOP_DATA with trashnet.zip and cifar10.zip.
"""

import argparse
import csv
import dataclasses
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from alloop.cli.main import cli
from alloop.engine.score import run_score
from alloop.loop.choosing.scoring import make_score_job
from alloop.loop.intake.reach import require_reachable
from alloop.loop.intake.teaching import list_pool
from alloop.loop.using.model import find_version, open_model
from alloop.loop.using.predicted import columns_of, pool_images, predict_images
from alloop.loop.using.row_files import open_rows
from alloop.project import open_project
from alloop.store.images import list_refs
from alloop.store.session import reading

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ALLOOP_DATA", ROOT.parent / "shared" / "data"))
TARGET = 0.95  # smallest ratio of images a second
EACH = 20  # labels of each class
CONFIG = """
[project]
name = "throughput"
classes = {classes}
[pool]
images = ["images"]
[model]
{model}
device = "cpu"
[train]
workers = 0
[evaluation]
holdout_size = 50
[labeling]
backend = "oracle"
[labeling.oracle]
file = "truth.csv"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cases = {
        "TrashNet, EfficientNet-lite0, nothing cached": (
            (
                "trashnet.zip",
                "labels.csv",
                options.photos,
                'backbone = "backbone:efficientnet_lite0"\nweights = "none"',
            ),
            True,
        ),
        "CIFAR-10, features of pixels, cached": (
            ("cifar10.zip", "test.csv", options.pictures, 'backbone = "pixels"\nweights = "none"'),
            False,
        ),
    }
    sys.path.insert(0, str(ROOT / "examples" / "trashnet"))  # the trunk is a user's own module
    ratios = []
    print("| case | command | images | seconds | images a second |")
    print("|---|---|---|---|---|")
    for name, (source, is_cold) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            workspace = make_workspace(Path(folder), *source)
            ratios.append(compare(name, workspace, options.repeats, is_cold=is_cold))
    for name, ratio in zip(cases, ratios, strict=True):
        print(f"{name}: predict / score = {ratio:.3f}: {'met' if ratio >= TARGET else 'missed'} (at least {TARGET})")
    sys.exit(0 if min(ratios) >= TARGET else 1)


def make_workspace(folder: Path, archive: str, table: str, n: int, model: str) -> Path:
    """Return a workspace with n images, a trained model and its scores."""
    with zipfile.ZipFile(DATA / archive) as data:
        listed = list(csv.DictReader(io.StringIO(data.read(table).decode())))
        rows = listed[:: max(1, len(listed) // n)][:n]
        for row in rows:
            data.extract(row["file"], folder / "images")
    classes = sorted({row["label"] for row in rows})
    truth = [(folder / "images" / row["file"], row["label"]) for row in rows]
    given = [pair for name in classes for pair in [pair for pair in truth if pair[1] == name][:EACH]]
    for path, pairs in ((folder / "truth.csv", truth), (folder / "given.csv", given)):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("file", "label"), *pairs])
    (folder / "alloop.toml").write_text(CONFIG.format(classes=str(classes).replace("'", '"'), model=model))
    for command in ("db upgrade", "pool add", "labels import given.csv", "train", "score"):
        where = str(folder / "given.csv") if "import" in command else ""
        cli(
            [*command.replace("given.csv", "").split(), *filter(None, [where]), "-C", str(folder), "-q"],
            standalone_mode=False,
        )
    return folder


def compare(name: str, workspace: Path, repeats: int, *, is_cold: bool) -> float:
    """Print a line for each command; return the images a second of the slower `predict` as a share of `score`'s."""
    with open_project(workspace) as project:

        def score() -> int:
            require_reachable(project)  # as the command does, and as `pool_images` does for the other one
            with reading(project.database) as session:
                model, current = find_version(session, None)
                refs, pool = list_refs(session), list_pool(session, project.config)
            job = make_score_job(project, current.number, project.config, model, refs, (), pool, None)
            return run_score(dataclasses.replace(job, out=workspace / "again.parquet")).n_images

        def predict(form: str) -> int:
            opened = open_model(project)
            with open_rows(workspace / f"out.{form}", form, columns_of(opened, None)) as writer:
                return predict_images(project, opened, pool_images(project), [writer]).images

        work: dict[str, Callable[[], int]] = {
            "score": score,
            "predict --out .parquet": lambda: predict("parquet"),
            "predict --out .csv": lambda: predict("csv"),
        }
        spent: dict[str, list[float]] = {command: [] for command in work}
        for _ in range(repeats):
            for command, do in work.items():
                if is_cold:
                    shutil.rmtree(workspace / "cache" / "features", ignore_errors=True)
                started = time.process_time()
                n = do()
                spent[command].append(time.process_time() - started)
    rates = {}
    for command, times in spent.items():
        seconds = statistics.median(times)
        rates[command] = n / seconds
        print(f"| {name} | `{command}` | {n} | {seconds:.2f} | {rates[command]:.1f} |", flush=True)
    own = rates.pop("score")
    return min(rates.values()) / own


if __name__ == "__main__":
    main()
