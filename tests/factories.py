"""Valid things with one detail changed: images, records, whole workspaces."""

import atexit
import contextlib
import csv
import dataclasses
import datetime as dt
import hashlib
import json
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from PIL import Image
from sqlalchemy.orm import Session
from torch import Tensor

from alloop.config.schema import Config
from alloop.engine.executor_local import LocalExecutor
from alloop.loop.intake.ingest import add_images
from alloop.loop.intake.near_copies import update_splits
from alloop.loop.workbench import Tools, Workbench, make_tools, open_workbench
from alloop.loop.workspace import create_workspace
from alloop.project import Project, open_project
from alloop.records import ImageFile, Query, Reason, Split
from alloop.store import images as store
from alloop.store.images import set_split

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
CLASSES = ("cat", "dog")
# Small, without weights, answered immediately.
SMALL: dict[str, dict[str, Any]] = {
    "project": {"name": "pets", "classes": list(CLASSES), "seed": 7},
    "model": {"backbone": "pixels", "weights": "none", "image_size": 16, "members": 2, "device": "cpu"},
    "train": {"workers": 0},
    "loop": {"batch_size": 6},
    "evaluation": {"holdout_size": 8, "holdout_share": 0.25},
    "labeling": {"backend": "oracle"},
    "labeling.oracle": {"file": "truth.csv"},
}


def make_config(**sections: Mapping[str, Any]) -> Config:
    """Make settings of a small project, as in `make_config(loop={"batch_size": 3})`."""
    data: dict[str, Any] = {"project": {"classes": CLASSES}}
    for name, values in sections.items():
        data[name] = {**data.get(name, {}), **values}
    return Config.model_validate(data)


def fake_sha256(number: int) -> str:
    """Return a made-up hash, evenly spread like a real one."""
    return hashlib.sha256(f"image {number}".encode()).hexdigest()


def make_image(number: int, **changes: Any) -> ImageFile:
    """Make the record of an image file; the file does not exist."""
    sha256 = fake_sha256(number)
    image = ImageFile(f"/pool/{number:04d}.png", sha256, 100 + number, number, 8, 8, "PNG", "RGB", sha256[:16])
    return dataclasses.replace(image, **changes)


def add_pool_image(
    session: Session, number: int, *, split: Split = Split.TRAIN, group: int | None = None, **changes: Any
) -> int:
    """Add a row for an image with its location; without other arguments it is alone in its near-duplicate group."""
    file = make_image(number, **changes)
    by_hash = store.add_images(session, [file], NOW)
    store.set_locations(session, [file], by_hash, NOW)
    image_id = by_hash[file.sha256]
    store.add_groups(session, [(image_id, image_id if group is None else group, 0)])
    update_splits(session, [image_id])
    if split is not Split.TRAIN:
        set_split(session, [image_id], split)
    return image_id


class Whole:
    """A picture in memory, as a trunk asks for it; never reduced. Tensors are uint8 [3, H, W]."""

    def __init__(self, picture: Image.Image | Tensor) -> None:
        self.picture = (
            picture if isinstance(picture, Image.Image) else Image.fromarray(picture.permute(1, 2, 0).numpy())
        )

    def enough(self, needed: object) -> tuple[Image.Image, tuple[float, float, float, float]]:
        return self.picture, (0.0, 0.0, *self.picture.size)


def make_query(image_id: int, **changes: Any) -> Query:
    """Make a query about one image."""
    return dataclasses.replace(Query(image_id, Reason.ACQUIRED, "entropy", rank=image_id), **changes)


def write_picture(path: Path, *, label: str, number: int, classes: Sequence[str] = CLASSES) -> Path:
    """Write a 16 x 16 PNG whose stripes show its class; noise makes every picture different."""
    noise = np.random.default_rng([classes.index(label), number]).normal(0, 40, (16, 16, 3))
    period = 2 + classes.index(label) // 2
    stripes = np.where(np.arange(16) % (2 * period) < period, 60, -60).reshape(16, 1, 1)
    if classes.index(label) % 2:
        stripes = stripes.reshape(1, 16, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((128 + stripes + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def write_pool(folder: Path, n: int, *, classes: Sequence[str] = CLASSES, first: int = 0) -> dict[str, str]:
    """Write n pictures, the classes in turn, and add them to `truth.csv` beside the folder.

    Returns:
        Class of each path.
    """
    truth = {}
    for number in range(first, first + n):
        label = classes[number % len(classes)]
        truth[str(write_picture(folder / f"{number:04d}.png", label=label, number=number, classes=classes))] = label
    add_truth(folder.parent / "truth.csv", truth)
    return truth


def add_truth(path: Path, truth: Mapping[str, str]) -> None:
    """Add rows to the oracle's answers."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["file", "label"], *truth.items()] if is_new else truth.items())


def render_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return settings as TOML; the JSON form of every value in tests is valid TOML."""
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None)
        for name, values in sections.items()
    )


def make_settings(**changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return SMALL with some settings changed; `__` in a name is the dot of a nested table."""
    sections = {name: dict(values) for name, values in SMALL.items()}
    for name, values in changes.items():
        sections.setdefault(name.replace("__", "."), {}).update(values)
    return sections


OPENED: list[Project] = []  # conftest closes them after each test, also those of fixtures that live longer


def _opened(folder: Path) -> Project:
    OPENED.append(open_project(folder, {}))
    return OPENED[-1]


def write_settings(project: Project, /, **changes: Mapping[str, Any]) -> Project:
    """Return the same workspace after an edit of alloop.toml."""
    (project.folder / "alloop.toml").write_text(render_toml(make_settings(**changes)))
    return _opened(project.folder)


Given = ParamSpec("Given")
Result = TypeVar("Result")


def tools_of(project: Project, **changes: Any) -> Tools:
    """Return the tools of commands, some of them replaced, as in `tools_of(project, clock=lambda: NOW)`."""
    return dataclasses.replace(make_tools(project, LocalExecutor()), **changes)


def at_bench(
    project: Project | Tools,
    step: Callable[Concatenate[Workbench, Given], Result],
    *args: Given.args,
    **options: Given.kwargs,
) -> Result:
    """Call a step with its own lease, as in `at_bench(project, steps.train, 0)`."""
    with open_workbench(tools_of(project) if isinstance(project, Project) else project) as bench:
        return step(bench, *args, **options)


_MADE: dict[str, Path] = {}  # arguments of a workspace → the first workspace that was made with them
# Tables of alloop.toml that are read only after the images have been added.
_READ_LATER = {"model", "train", "calibration", "acquisition", "loop"}


def make_project(
    tmp_path: Path,
    n: int = 40,
    *,
    name: str = "pets",
    classes: Sequence[str] = CLASSES,
    add: bool = True,
    **changes: Mapping[str, Any],
) -> Project:
    """Make a workspace with n real pictures in its pool; the oracle knows all. The second one of a kind is a copy."""
    folder = tmp_path / name
    changes["project"] = {"classes": list(classes), **changes.get("project", {})}
    read = {table: values for table, values in changes.items() if table.split("__")[0] not in _READ_LATER}
    kind = repr((n, name, classes, add, read))
    if str(tmp_path) in kind or "database" in changes:
        return _make_project(folder, n, classes, add, changes)
    if kind not in _MADE:
        if not _MADE:
            atexit.register(_forget_all)
        there = Path(tempfile.mkdtemp(prefix="alloop-")) / name
        _make_project(there, n, classes, add, read).close()
        OPENED.pop()
        _MADE[kind] = there
    return copy_project(_MADE[kind], folder, changes)


def _make_project(
    folder: Path, n: int, classes: Sequence[str], add: bool, changes: Mapping[str, Mapping[str, Any]]
) -> Project:
    folder.mkdir(parents=True)
    write_pool(folder / "photos", n, classes=classes)
    create_workspace(folder, render_toml(make_settings(**changes)))
    project = _opened(folder)
    if add:
        at_bench(project, add_images, [str(folder / "photos")])
    return project


def copy_project(made: Path, folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> Project:
    """Copy a workspace to another place, with other settings, and give the copy its own identity."""
    shutil.copytree(made, folder)
    (folder / "alloop.toml").write_text(render_toml(make_settings(**changes)))
    truth = folder / "truth.csv"
    truth.write_text(truth.read_text().replace(str(made), str(folder)))
    with contextlib.closing(sqlite3.connect(folder / "alloop.db")) as connection, connection:
        connection.execute("UPDATE image_location SET path = replace(path, ?, ?)", (str(made), str(folder)))
        connection.execute("UPDATE workspace SET uuid = ?", (uuid.uuid4().hex,))
    return _opened(folder)


def _forget_all() -> None:
    for made in _MADE.values():
        shutil.rmtree(made.parent)
