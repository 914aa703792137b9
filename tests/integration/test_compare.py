"""`alloop compare` from the shell: two methods, two seeds, tiny pictures."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome, alloop
from factories import make_project, render_toml, write_picture
from PIL import Image

from alloop.engine.executor_local import LocalExecutor
from alloop.engine.jobs import ScoreJob, TrainJob


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """80 pictures in a folder per class, beside settings for a small model."""
    return write_pictures(tmp_path)


def write_pictures(folder: Path) -> Path:
    for label in ("cat", "dog"):
        for number in range(40):
            write_picture(folder / "photos" / label / f"{number:02}.png", label=label, number=number)
    model = {"backbone": "pixels", "weights": "none", "image_size": 16, "device": "cpu"}
    sections = {"project": {"classes": ["cat", "dog"]}, "model": model, "train": {"workers": 0, "epochs": 20}}
    (folder / "alloop.toml").write_text(render_toml(sections))
    return folder / "photos"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of such pictures that `_compare` has finished with; to be copied."""
    folder = tmp_path_factory.mktemp("compared") / "finished"
    folder.mkdir()
    assert _compare(write_pictures(folder)).code == 0
    return folder


@pytest.fixture
def compared(finished: Path, tmp_path: Path) -> Path:
    """The same pictures and results in a place of their own."""
    return Path(shutil.copytree(finished, tmp_path / "compared")) / "photos"


def _compare(pictures: Path, *more: str, methods: str = "SL1H,4HML") -> Outcome:
    folder = pictures.parent
    return alloop(
        "compare", "-C", folder, "--folder", pictures, "--methods", methods, "--seeds", "2", "--labels", "16", *more
    )


def read_lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the training jobs that were run."""
    seeds: list[int] = []
    submit = LocalExecutor.submit

    def counting(self, job, *rest):
        if isinstance(job, TrainJob):
            seeds.append(job.seed)
        return submit(self, job, *rest)

    monkeypatch.setattr(LocalExecutor, "submit", counting)
    return seeds


def test_two_methods_are_compared_on_the_same_images(pictures: Path, trained: list[int]):
    done = _compare(pictures)

    assert done.code == 0, done.err
    out = pictures.parent / "compare"
    lines = read_lines(out / "cells.csv")
    assert [(line["method"], line["seed"], line["stage"]) for line in lines] == [
        (method, seed, stage) for seed in "01" for method in ("SL1H", "4HML") for stage in ("raw", "temperature")
    ]
    assert {(line["n_train"], line["n_calibration"], line["n_test"]) for line in lines} == {("16", "16", "32")}
    for metric in ("accuracy", "nll", "brier", "ece", "mce", "adaptive_ece", "classwise_ece"):
        assert all(float(line[f"{metric}_low"]) <= float(line[f"{metric}_high"]) for line in lines)
    # Both methods of a seed train with the same seed, different seeds do not.
    assert trained[0] == trained[1] != trained[2] == trained[3]
    for name in ("SL1H", "4HML"):
        assert re.search(rf"{name}\b.*±", done.out)
        for kind in ("reliability", "confidence"):
            assert (out / f"{kind}-{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert not list(out.glob(".cell-*"))


def test_what_is_finished_is_not_trained_again(compared: Path, trained: list[int]):
    table = compared.parent / "compare" / "cells.csv"
    first = table.read_text()
    table.unlink()

    assert _compare(compared).code == 0

    assert trained == []
    assert table.read_text() == first


def test_a_killed_comparison_goes_on_where_it_stopped(pictures: Path, trained: list[int], monkeypatch):
    submit = LocalExecutor.submit

    def killed(self, job, *rest):
        if isinstance(job, ScoreJob) and len(trained) == 3:
            raise KeyboardInterrupt
        return submit(self, job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(LocalExecutor, "submit", killed)
        assert _compare(pictures).code == 130
    assert len(list((pictures.parent / "compare" / "cells").glob("*.json"))) == 2

    assert _compare(pictures).code == 0

    assert len(trained) == 3 + 2  # the one that was under way, and the last
    assert len(read_lines(pictures.parent / "compare" / "summary.csv")) == 2 * 2


def test_other_settings_are_other_cells(compared: Path, trained: list[int]):
    _compare(compared, "--calibration", "none", methods="SL1H")

    assert len(trained) == 2
    assert {line["stage"] for line in read_lines(compared.parent / "compare" / "cells.csv")} == {"raw"}


def test_no_time_left_begins_nothing_and_says_what_is_missing(pictures: Path, trained: list[int]):
    done = _compare(pictures, "--budget-minutes", "0")

    assert (done.code, trained) == (0, [])
    assert "Not started, because time was up (method/seed): 4HML/0, 4HML/1, SL1H/0, SL1H/1" in " ".join(
        done.out.split()
    )


def test_json_holds_the_table_and_the_bins_of_every_diagram(compared: Path):
    found = _compare(compared, "--json").data

    assert [row["method"] for row in found["rows"]] == ["SL1H", "4HML"]
    for cell in found["cells"]:
        raw = cell["stages"]["raw"]
        assert sum(raw["count"]) == cell["n_test"]
        assert raw["intervals"].keys() == raw["metrics"].keys()
        gaps = [n * abs(a - c) for n, a, c in zip(raw["count"], raw["accuracy"], raw["confidence"], strict=True) if n]
        assert sum(gaps) / cell["n_test"] == pytest.approx(raw["metrics"]["ece"])
    assert found["rows"][0]["score_ratio"] == 1.0


def test_unknown_names_are_answered_with_the_nearest(pictures: Path):
    method, calibrator = _compare(pictures, methods="SL1H,logitnrom"), _compare(pictures, "--calibration", "temprature")

    assert (method.code, calibrator.code) == (2, 2)
    assert "did you mean 'LogitNorm'" in method.err
    assert "did you mean 'temperature'" in calibrator.err


def test_the_list_says_what_the_settings_rule_out(pictures: Path):
    found = alloop("compare", "-C", pictures.parent, "--folder", pictures, "--list", "--json").data

    possible = {method["name"]: method["possible"] for method in found}
    assert (possible["4HML"], possible["CutMix"]) == (True, False)


def test_a_workspaces_labels_are_split_or_measured_on_its_holdout(tmp_path: Path):
    project = make_project(tmp_path, 60, evaluation={"holdout_size": 20, "holdout_share": 0.5})
    assert alloop("labels", "import", project.folder.parent / "pets" / "truth.csv", "-C", project.folder).code == 0

    methods = ("--methods", "SL1H", "--seeds", "1", "--json")
    parts = alloop("compare", "-C", project.folder, *methods).data["cells"][0]
    holdout = alloop("compare", "-C", project.folder, *methods, "--split", "holdout")

    assert (parts["n_train"], parts["n_calibration"], parts["n_test"]) == (24, 12, 24)
    assert holdout.code in (0, 1)
    if holdout.code == 1:
        assert "No holdout image is labeled" in holdout.err
    else:
        assert json.loads(holdout.out)["cells"][0]["n_calibration"] == 0


def test_strange_images_are_told_apart_by_every_score(pictures: Path):
    strange = pictures.parent / "strange"
    for number in range(20):
        # Noise without stripes, much brighter.
        pixels = np.random.default_rng(number).integers(200, 256, (16, 16, 3), dtype=np.uint8)
        strange.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(strange / f"{number}.png")

    done = _compare(pictures, "--ood", str(strange), "--odin-images", "12")

    assert done.code == 0, done.err
    lines = read_lines(pictures.parent / "compare" / "ood.csv")
    scores = {
        method: [line["score"] for line in lines if (line["method"], line["seed"]) == (method, "0")]
        for method in ("SL1H", "4HML")
    }
    assert scores["SL1H"] == ["GEN", "GradNorm", "MSP", "ODIN", "energy", "entropy", "max logit"]
    assert scores["4HML"] == [*scores["SL1H"], "mutual information"]
    assert {(line["n_id"], line["n_ood"]) for line in lines if line["score"] != "ODIN"} == {("32", "20")}
    assert {(line["n_id"], line["n_ood"]) for line in lines if line["score"] == "ODIN"} == {("12", "12")}
    for metric in ("auroc", "fpr95", "fpr95_id", "aupr_out", "aupr_in"):
        assert all(float(line[f"{metric}_low"]) <= float(line[f"{metric}_high"]) for line in lines)
    # For two classes MSP and entropy order images alike.
    by_score = {line["score"]: line["auroc"] for line in lines if (line["method"], line["seed"]) == ("SL1H", "1")}
    assert by_score["MSP"] == by_score["entropy"]
    assert (pictures.parent / "compare" / "ood-4HML.png").exists()
    assert "AUROC" in (pictures.parent / "compare" / "index.html").read_text()


def test_a_labeled_image_is_no_stranger(pictures: Path):
    done = _compare(pictures, "--ood", str(pictures / "cat"))

    assert done.code == 1
    assert "which is also labeled" in done.err


def test_results_elsewhere_use_the_features_of_the_workspace(pictures: Path, tmp_path: Path):
    done = _compare(pictures, "--out", str(tmp_path / "elsewhere"), methods="SL1H")

    assert done.code == 0, done.err
    assert (tmp_path / "elsewhere" / "index.html").exists()
    assert (pictures.parent / "cache" / "features").is_dir()
    assert not (tmp_path / "elsewhere" / "cache").exists()


def test_labels_that_may_leave_one_class_to_train_on_are_refused_before_anything_is_trained(
    pictures: Path, trained: list[int]
):
    for picture in sorted((pictures / "dog").iterdir())[1:]:
        picture.unlink()

    refused = _compare(pictures, "--labels", "2")

    assert refused.code == 1
    assert "of one class only. All labels: 40 of cat, 1 of dog" in refused.err
    assert trained == []
