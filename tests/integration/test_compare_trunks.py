"""`alloop compare --backbones` and `alloop backbones` from the shell, and a project with two trunks."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome, alloop
from factories import make_project, render_toml, write_picture

from alloop.engine.executor_local import LocalExecutor
from alloop.engine.jobs import TrainJob
from alloop.simulate.labeled import draw_folds

TRUNK = """
import torch
from torch import nn
from alloop.models.backbones import Backbone

class Noise(nn.Module):
    def forward(self, images):
        return torch.sin(1e4 * images.mean(dim=(2, 3)))

def means():
    return Backbone(nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), n_features=48, image_size=16)

def noise():
    return Backbone(Noise(), n_features=3, image_size=8)

def broken():
    raise ValueError("no weights today")
"""
NAMES = "pixels,own_trunk:noise,pixels+own_trunk:means"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 pictures in a folder per class, beside settings for small models."""
    for label in ("cat", "dog"):
        for number in range(20):
            write_picture(tmp_path / "photos" / label / f"{number:02}.png", label=label, number=number)
    (tmp_path / "own_trunk.py").write_text(TRUNK)
    model = {"backbone": "pixels", "image_size": 16, "device": "cpu", "uncertainty": "single", "pool_features": "off"}
    sections = {"project": {"classes": ["cat", "dog"]}, "model": model, "train": {"workers": 0, "epochs": 20}}
    (tmp_path / "alloop.toml").write_text(render_toml(sections))
    return tmp_path / "photos"


def compare(pictures: Path, *more: str, names: str = NAMES) -> Outcome:
    return alloop("compare", "-C", pictures.parent, "--folder", pictures, "--backbones", names, *more)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainJob]:
    """Training jobs that were run."""
    seen: list[TrainJob] = []
    submit = LocalExecutor.submit

    def watching(self, job, *rest):
        seen.append(job)
        return submit(self, job, *rest)

    monkeypatch.setattr(LocalExecutor, "submit", watching)
    return seen


def test_trunks_are_compared_by_nested_cross_validation(pictures: Path, jobs: list[TrainJob]):
    done = compare(pictures, "--json-out", str(pictures.parent / "result.json"))

    assert done.code == 0, done.err
    rows = {row["name"]: row for row in json.loads((pictures.parent / "result.json").read_text())["rows"]}
    assert list(rows) == NAMES.split(",")
    assert [row["n_features"] for row in rows.values()] == [1024, 3, 1072]
    for row in rows.values():
        assert (row["n_images"], row["n_train"], row["n_seeds"]) == (40, 32, 1)
        assert all(interval["low"] <= interval["value"] <= interval["high"] for interval in row["metrics"].values())
    assert rows["pixels"]["metrics"]["accuracy"]["value"] > 0.9
    assert rows["own_trunk:noise"]["ahead"]["accuracy"]["high"] < 0  # clearly worse
    assert rows["pixels"]["ahead"] == {}
    for job in jobs:  # an outer fold is only measured on: nothing is fitted to it, the calibrator neither
        assert job.is_test
        assert not {image.key for image in job.images} & {image.key for image in job.holdout}
    for of_trunk in (jobs[start : start + 5] for start in (0, 5, 10)):
        assert len({image.key for job in of_trunk for image in job.holdout}) == 40
        assert [job.holdout for job in of_trunk] == [job.holdout for job in jobs[:5]]
    for name in rows:
        assert f" {name} " in done.out
    lines = list(csv.DictReader((pictures.parent / "compare" / "backbones.csv").read_text().splitlines()))
    assert [line["backbone"] for line in lines] == list(rows)
    assert "trunks × folds: 15/15" in done.err
    assert "Trunks compared" in (pictures.parent / "compare" / "backbones.html").read_text()


def test_what_is_finished_is_not_trained_again(pictures: Path, jobs: list[TrainJob]):
    first = compare(pictures, "--json", names="pixels").data

    compare(pictures, "--json", names="own_trunk:noise,pixels")
    again = compare(pictures, "--json", names="pixels").data

    assert len(jobs) == 10
    assert again == first


def test_no_time_left_says_what_is_missing(pictures: Path, jobs: list[TrainJob]):
    done = compare(pictures, "--budget-minutes", "0", names="pixels")

    assert (done.code, jobs) == (0, [])
    assert "Not finished, because time was up: pixels." in done.out


def test_a_trunk_that_cannot_be_loaded_does_not_stop_the_others(pictures: Path):
    done = compare(pictures, "--json", names="pixels,own_trunk:broken,own_trunk:means")

    assert done.code == 0, done.err
    assert [row["name"] for row in done.data["rows"]] == ["pixels", "own_trunk:means"]
    (failed,) = done.data["failed"]
    assert (failed["name"], "no weights today" in failed["reason"]) == ("own_trunk:broken", True)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("pixels,resnet5", "There is no backbone 'resnet5'."),
        ("pixels,resnet5", "Did you mean resnet50"),
        ("own_trunk:nois", "Did you mean noise"),
        ("resnet18@IMAGENET1K_V7", "There are no weights 'IMAGENET1K_V7' of resnet18"),
        ("pixels+pixels", "backbone names 'pixels' twice"),
        ("pixels+", "'' is not a trunk"),
        ("resnet18@", "'resnet18@' is not a trunk"),
        ("features:8", "only trunks that look at images can be compared"),
        (",", "names no trunk"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_computed(pictures: Path, names: str, words: str):
    done = compare(pictures, names=names)

    assert done.code == 2, done.err
    assert words in done.err
    assert not (pictures.parent / "compare").exists()


def test_flags_of_methods_and_fine_tuning_are_refused(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    refused = compare(pictures, "--methods", "SL1H")
    assert (refused.code, "--methods belongs to a comparison of methods" in refused.err) == (2, True)

    monkeypatch.setenv("ALLOOP__MODEL__MODE", "finetune")
    refused = compare(pictures, names="own_trunk:means")
    assert (refused.code, "ALLOOP__MODEL__MODE=frozen" in refused.err) == (2, True)


def test_folds_share_the_classes_and_no_image():
    targets = np.array([0] * 30 + [1] * 15 + [2] * 5)

    folds = draw_folds(targets, 3, 5)

    assert sorted(np.concatenate([part.test for part in folds]).tolist()) == list(range(50))
    for part in folds:
        assert np.bincount(targets[part.test]).tolist() == [6, 3, 1]
        assert sorted([*part.train, *part.test]) == list(range(50))
    few = draw_folds(targets, 3, 5, n_labels=10)
    assert [np.bincount(targets[part.train]).tolist() for part in few] == [[6, 3, 1]] * 5


def test_backbones_are_listed_and_the_one_that_is_set_is_marked(tmp_path: Path):
    (tmp_path / "alloop.toml").write_text(
        render_toml({"project": {"classes": ["cat", "dog"]}, "model": {"backbone": ["pixels", "resnet50"]}})
    )
    alloop("db", "upgrade", "-C", tmp_path)

    listed = alloop("backbones", "--json", "-C", tmp_path).data
    shown = alloop("backbones", "-C", tmp_path).out

    assert {(row["name"], row["weights"]) for row in listed if row["is_set"]} == {("resnet50", "IMAGENET1K_V2")}
    assert all(row["name"] in shown for row in listed)
    assert [row["needs_timm"] for row in listed] == [row["name"].startswith("timm:") for row in listed]


def test_a_project_with_two_trunks_runs_is_explained_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "own_trunk.py").write_text(TRUNK)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    two = {"backbone": ["pixels", "own_trunk:noise"], "weights": "DEFAULT", "image_size": [16, 12]}
    project = make_project(tmp_path, n=40, model=two, pool={"near_duplicates": False})

    done = alloop("run", "-C", project.folder, "--rounds", "3", "--json")

    assert done.code == 0, done.err
    for command in (["replay", "2"], ["explain", "0003.png"]):
        said = alloop(*command, "-C", project.folder, "--json")
        assert said.code == 0, said.err
    trunks = json.loads(next(project.folder.glob("runs/*/*/model.json")).read_text())["backbone"]["side_by_side"]
    assert [trunk["image_size"] for trunk in trunks] == [16, 12]
    path = project.folder / "alloop.toml"
    path.write_text(path.read_text().replace('["pixels", "own_trunk:noise"]', '"pixels"').replace("[16, 12]", "16"))
    refused = alloop("run", "-C", project.folder)
    assert refused.code == 2
    assert "[model] backbone: ('pixels', 'own_trunk:noise') → 'pixels'" in refused.err
