"""Whole project on scikit-learn's digits: real images, a real Label Studio, scripted people."""

import csv
import dataclasses
import io
import json
import random
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from PIL import Image

from alloop.composition import DEFAULT_STRATEGY
from alloop.errors import WorkspaceError
from alloop.executor import Executor
from alloop.files import make_output_folder, sha256_of, write_bytes
from alloop.labeling import local_server
from alloop.loop.intake.ingest import add_images
from alloop.loop.rounds.runner import RunOptions, Stage, run
from alloop.loop.workbench import Tools, make_tools, open_workbench
from alloop.loop.workspace import create_workspace
from alloop.progress import Progress, silent
from alloop.project import Project, open_project
from alloop.records import CurvePoint, Interval
from alloop.simulate.browser_people import BrowserPerson, SeenTask, create_annotator_account, label_all
from alloop.simulate.rest import accuracy_on_rest
from alloop.store.rounds import find_model, list_metrics, list_rounds
from alloop.store.session import reading
from alloop.store.workspace import find_sync

Labeler = Literal["label-studio", "oracle"]

MARK = ".alloop-demo"  # marks a folder that the demo made and may replace
SCALE = 8  # the digits are 8×8 pixels, too small for people to see
PEOPLE = ("ada", "ben", "cleo")


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """Size of the demo.

    Attributes:
        images: Number of digits, the first of the 1,797.
        mistakes: Probability that a scripted person gives a wrong class.
    """

    folder: Path
    labeler: Labeler = "label-studio"
    rounds: int = 5
    batch_size: int = 50
    images: int = 1797
    mistakes: float = 0.02
    seed: int = 0
    keep: bool = False


@dataclasses.dataclass(frozen=True)
class DemoArm:
    """Result of one strategy. `rest` is the accuracy, against the truth, on images never asked about, if any."""

    workspace: Path
    curve: tuple[CurvePoint, ...]
    rest: Interval | None


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """Results of both arms. `url` is the address of the server if it keeps running."""

    arms: Mapping[str, DemoArm]
    url: str | None


def run_demo(settings: DemoSettings, executor: Executor, progress: Progress = silent) -> DemoResult:
    """Run the default strategy and random choice with the same holdout, seed batch and numbers of labels.

    With `labeler = "label-studio"`, three accounts label the first arm on a real server, and the simulated annotator
    answers the random arm. Both give the same answers, including mistakes; otherwise a few wrong holdout labels could
    look like a difference between the strategies.

    Raises:
        WorkspaceError: The demo did not make the folder.
    """
    _clear(settings.folder)
    truth = write_digits(settings.folder / "digits", settings.images)
    answers = {sha256: _answer(settings, sha256, label) for sha256, label in truth.items()}
    _write_labels(settings.folder / "answers.csv", answers)
    with (
        _workspace(settings, DEFAULT_STRATEGY, settings.labeler) as ours,
        _workspace(settings, "random", "oracle") as at_random,
    ):
        arms = {
            name: make_tools(project, executor, progress)
            for name, project in ((DEFAULT_STRATEGY, ours), ("random", at_random))
        }
        for tools in arms.values():
            with open_workbench(tools) as bench:
                add_images(bench, [str(settings.folder / "digits")])
        url = None
        if settings.labeler == "label-studio":
            url = _run_with_people(settings, arms[DEFAULT_STRATEGY], answers)
        else:
            run(arms[DEFAULT_STRATEGY], RunOptions(rounds=None))
        run(arms["random"], RunOptions(rounds=None))
        measured = {
            name: DemoArm(tools.project.folder, read_curve(tools.project), accuracy_on_rest(tools, truth))
            for name, tools in arms.items()
        }
    return DemoResult(measured, url)


def write_digits(folder: Path, n: int = 1797) -> dict[str, str]:
    """Write the first n digits as PNG files and their classes as `truth.csv` beside the folder.

    Returns:
        Content hash → class. Digits with the same pixels are one image.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder.mkdir(parents=True)
    truth: dict[str, str] = {}
    for number, (pixels, target) in enumerate(zip(digits.images[:n], digits.target[:n], strict=True)):
        picture = Image.fromarray((pixels * 255 / 16).round().astype("uint8"))
        path = folder / f"{number:04d}.png"
        picture.resize((8 * SCALE, 8 * SCALE), Image.Resampling.NEAREST).save(path)
        truth[sha256_of(path)] = str(target)
    _write_labels(folder.parent / "truth.csv", truth)
    return truth


def read_curve(project: Project) -> tuple[CurvePoint, ...]:
    """Return the number of training labels and the holdout accuracy of every model."""
    points = []
    with reading(project.database) as session:
        for row in list_rounds(session):
            model = find_model(session, row.id)
            metrics = {} if model is None else list_metrics(session, model.id, "holdout")
            if model is not None and "accuracy" in metrics:
                points.append(CurvePoint(model.n_labels, metrics["accuracy"]))
    return tuple(points)


def _answer(settings: DemoSettings, sha256: str, right: str) -> str:
    """Return a person's answer about an image: mostly the true class, and the same for all people and times."""
    chance = random.Random(f"{settings.seed} {sha256}")  # noqa: S311 (a script, not a secret)
    wrong = [str(digit) for digit in range(10) if str(digit) != right]
    return chance.choice(wrong) if chance.random() < settings.mistakes else right


def _write_labels(path: Path, labels: Mapping[str, str]) -> None:
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerows([("sha256", "label"), *labels.items()])
    write_bytes(path, rows.getvalue().encode())


def _clear(folder: Path) -> None:
    """Stop and remove an earlier demo in the same folder."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise WorkspaceError(f"{folder} is not empty and was not made by the demo.", "Name another folder.")
        local_server.down(folder / DEFAULT_STRATEGY)
        shutil.rmtree(folder)
    make_output_folder(folder)
    (folder / MARK).touch()


def _workspace(settings: DemoSettings, strategy: str, backend: str) -> Project:
    folder = settings.folder / strategy
    classes = json.dumps([str(digit) for digit in range(10)])
    content = f"""\
# Made by `alloop demo`: scikit-learn's digits, asked by {strategy}.
[project]
name = "digits-{strategy}"
classes = {classes}
seed = {settings.seed}

[pool]
images = [{json.dumps(str((settings.folder / "digits").absolute()))}]

[model]
backbone = "pixels"               # the gray pixels themselves: nothing to download
weights = "none"
image_size = 8

[loop]
batch_size = {settings.batch_size}
max_rounds = {settings.rounds}

[acquisition]
strategy = "{strategy}"
cold_start = "random"             # both arms begin with the same batch

[labeling]
backend = "{backend}"

[labeling.oracle]
file = {json.dumps(str((settings.folder / "answers.csv").absolute()))}
"""
    create_workspace(folder, content)
    return open_project(folder)


def _run_with_people(settings: DemoSettings, tools: Tools, answers: Mapping[str, str]) -> str | None:
    """Run rounds with a real server until the round limit is reached."""
    project, progress = tools.project, tools.progress
    status = local_server.up(project.folder, [settings.folder / "digits"], progress=progress)
    try:
        people = _sign_up(project)
        while (result := run(tools, RunOptions())).stage is not Stage.DONE:
            if result.stage is Stage.WAITING:
                progress(f"round {result.round_number}: people labeling", 0, result.open)
                _label(project, people, answers)
                progress(f"round {result.round_number}: people labeling", result.open, result.open)
    finally:
        if not settings.keep:
            local_server.down(project.folder, progress)
    return status.url if settings.keep else None


def _sign_up(project: Project) -> list[BrowserPerson]:
    credentials = local_server.read_credentials(project.folder)
    assert credentials is not None, "the server was just started"
    owner = BrowserPerson(credentials.url, credentials.email, credentials.password)
    people = [create_annotator_account(owner, f"{name}@example.com", f"{name}-labels-digits") for name in PEOPLE]
    owner.close()
    return people


def _label(project: Project, people: list[BrowserPerson], answers: Mapping[str, str]) -> None:
    """Let all people work at the same time until no task is left."""
    with reading(project.database) as session:
        sync = find_sync(session, "label-studio")
    assert sync is not None, "tasks were just pushed"

    def decide(task: SeenTask) -> str:
        return answers[task.sha256]

    with ThreadPoolExecutor(len(people)) as pool:
        for done in [pool.submit(label_all, person, int(sync.project_ref), decide) for person in people]:
            done.result()
