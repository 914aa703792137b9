"""`alloop export-model`: the folder works in an environment that has neither torch nor alloop."""

import hashlib
import json
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from command_line import alloop
from factories import CLASSES, make_project

from alloop.engine.score_file import read_scores

pytestmark = pytest.mark.usefixtures("onnx_operators")

EXAMPLE = Path(__file__).parents[2] / "examples" / "trashnet"
NEEDED = ("onnxruntime", "numpy", "numpy.libs", "PIL", "pillow.libs", "flatbuffers", "google", "packaging")


@pytest.fixture
def project(tmp_path):
    """A workspace after two rounds; smoothed heads need 30 different images."""
    made = make_project(tmp_path, 60, loop={"batch_size": 12, "max_rounds": 2})
    return _run(made)


def _run(made):
    for _ in range(3):  # a round waits once for the oracle
        assert alloop("run", "-C", made.folder).code == 0
    return made


@pytest.fixture
def bare(tmp_path) -> Path:
    """A Python with onnxruntime, NumPy and Pillow, and nothing else."""
    folder = tmp_path / "bare"
    venv.create(folder, with_pip=False, symlinks=True)
    here = Path(sysconfig.get_paths()["purelib"])
    (there,) = folder.glob("lib/python*/site-packages")
    for name in NEEDED:
        if (here / name).exists():
            (there / name).symlink_to(here / name)
    return folder / "bin" / "python"


def test_a_bare_environment_predicts_what_alloop_predicts(project, bare, tmp_path):
    out = tmp_path / "exported"

    done = alloop("export-model", out, "-C", project.folder, "--json")

    assert done.code == 0, done.err
    assert done.data["files"] == ["model.pt2", "model.onnx"]
    assert max(done.data["largest_difference"].values()) < 1e-5
    nothing = subprocess.run([bare, "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in nothing.stderr
    photos = sorted((project.folder / "photos").rglob("*.png"))[:12]
    shutil.move(out, tmp_path / "elsewhere")  # the folder works anywhere

    said = subprocess.run(
        [bare, tmp_path / "elsewhere" / "predict.py", *photos], capture_output=True, text=True, check=True
    )

    rows = [line.split("\t") for line in said.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(photo) for photo in photos]
    assert {row[1] for row in rows} <= set(CLASSES)
    scores = read_scores(project.paths.scores(1))
    confident = dict(zip(scores.sha256s, zip(scores.predicted, scores.entropy, strict=True), strict=True))
    compared = [
        (row, confident[digest])
        for row, photo in zip(rows, photos, strict=True)
        if (digest := hashlib.sha256(photo.read_bytes()).hexdigest()) in confident
    ]
    assert compared
    for row, (predicted, entropy) in compared:  # images of the pool are nodes, and are placed anew outside
        assert row[1] == predicted
        assert float(row[3]) == pytest.approx(float(entropy), abs=0.15)


def test_the_card_says_what_was_taught_and_names_nobody(project, tmp_path):
    alloop("export-model", tmp_path / "exported", "-C", project.folder, "--round", "1")
    card = (tmp_path / "exported" / "model-card.md").read_text()

    for part in (
        "What it was taught",
        "How well it was measured",
        "Calibration",
        "Strange images",
        "Limits",
        "Licence",
    ):
        assert f"## {part}" in card
    assert "oracle-1" not in card
    assert "TODO" in card
    for name in CLASSES:
        assert f"| {name} |" in card


def test_a_round_of_its_own_and_refusals(project, tmp_path):
    first = alloop("export-model", tmp_path / "first", "-C", project.folder, "--round", "0", "--json")
    assert first.code == 1
    assert "Round 0 has no model" in first.err
    named = alloop("export-model", tmp_path / "one", "-C", project.folder, "--round", "1", "--json")
    assert named.data["model"].startswith("r1-")

    again = alloop("export-model", tmp_path / "one", "-C", project.folder)
    assert again.code == 1
    assert str(tmp_path / "one") in again.err
    assert "not empty" in again.err


def test_without_a_model_the_way_out_is_named(tmp_path):
    empty = make_project(tmp_path, 12)
    done = alloop("export-model", tmp_path / "out", "-C", empty.folder)
    assert done.code == 1
    assert "There is no model yet" in done.err
    assert not (tmp_path / "out").exists()


def test_a_real_network_gives_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    made = make_project(
        tmp_path, 40, loop={"batch_size": 12, "max_rounds": 2},
        model={"backbone": "backbone:efficientnet_lite0", "weights": "none", "image_size": 64},
    )  # fmt: skip
    _run(made)
    done = alloop("export-model", tmp_path / "out", "-C", made.folder, "--json")
    assert done.code == 0, done.err
    assert max(done.data["largest_difference"].values()) < 1e-4
    rule = json.loads((tmp_path / "out" / "preprocess.json").read_text())
    assert rule["inputs"][0]["image_size"] == 64
