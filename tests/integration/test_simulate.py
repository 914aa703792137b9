"""`alloop simulate` from the shell, on a few rows of features."""

import csv
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Outcome, alloop
from factories import make_project, make_settings, render_toml, write_picture

from alloop.engine.executor_local import LocalExecutor
from alloop.engine.jobs import TrainJob
from alloop.simulate import run as simulation
from alloop.simulate.features_file import read_features

ROWS, BATCH, ROUNDS = 90, 8, 3
STRATEGIES = ("random", "entropy", "least_confidence")
CELLS = 6  # 3 strategies × 2 seeds


def write_features(path: Path, n: int, seed: int, **changes: Any) -> Path:
    """Three overlapping clouds in five dimensions, the class told by the cloud."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 3
    centers = np.eye(3, 5) * 2
    arrays = {"F": centers[y] + generator.normal(size=(n, 5)), "y": y} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_features(tmp_path / "pool.npz", ROWS, 0)


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    return write_features(tmp_path / "test.npz", 60, 1)


def _simulate(pool: Path, *more: str | Path, strategies: str = ",".join(STRATEGIES), seeds: int = 1) -> Outcome:
    folder = pool.parent
    return alloop(
        "simulate", "-C", folder / "nowhere", "--out", folder / "out", "--features", pool, "--strategies", strategies,
        "--batch", str(BATCH), "--rounds", str(ROUNDS), "--seeds", str(seeds), "--json-out", folder / "runs.json",
        "--set", "train.epochs=20", *more,
    )  # fmt: skip


def _runs(pool: Path) -> dict[tuple[str, int], dict[str, Any]]:
    data = json.loads((pool.parent / "runs.json").read_text())
    return {(run["strategy"], run["seed"]): run for run in data["runs"]}


def _rows(run: dict[str, Any]) -> list[int]:
    return list(itertools.chain(*run["picks"]))


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


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """Output and results of the command, and the pool that it used."""
    folder = tmp_path_factory.mktemp("simulated")
    pool = write_features(folder / "pool.npz", ROWS, 0)
    return _simulate(pool, "--test", write_features(folder / "test.npz", 60, 1), seeds=2), pool


def test_every_run_has_a_batch_an_accuracy_and_times_for_each_round(simulated: tuple[Outcome, Path]):
    done, pool = simulated

    assert done.code == 0, done.err
    runs = _runs(pool)
    assert set(runs) == {(strategy, seed) for strategy in STRATEGIES for seed in (0, 1)}
    for run in runs.values():
        assert [len(batch) for batch in run["picks"]] == [BATCH] * ROUNDS
        assert len(set(_rows(run))) == BATCH * ROUNDS
        assert set(_rows(run)) <= set(range(ROWS))
        assert run["n_labels"] == [8, 16, 24]
        assert run["n_test"] == 60
        for key in ("accuracy", "seconds", "select_seconds", "train_seconds", "score_seconds"):
            assert len(run[key]) == ROUNDS
        assert all(0 < accuracy <= 1 for accuracy in run["accuracy"])
        parts = zip(run["seconds"], run["select_seconds"], run["train_seconds"], strict=True)
        assert all(whole > select + train for whole, select, train in parts)


def test_the_report_shows_curves_areas_and_wins(simulated: tuple[Outcome, Path]):
    done, pool = simulated

    assert "Value of each strategy" in done.out
    # The table's title is as narrow as the table.
    assert "Seeds and later budgets at which the row is better" in " ".join(done.out.split())
    page = (pool.parent / "out" / "index.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    with (pool.parent / "out" / "runs.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == CELLS * ROUNDS
    summary = json.loads((pool.parent / "runs.json").read_text())["summary"]
    assert [row["strategy"] for row in summary["rows"]] == list(STRATEGIES)
    assert summary["budgets"] == [8, 16, 24]


def test_strategies_of_a_seed_start_from_the_same_rows_and_part_later(simulated: tuple[Outcome, Path]):
    _, pool = simulated

    runs = _runs(pool)
    for seed in (0, 1):
        assert len({tuple(runs[strategy, seed]["picks"][0]) for strategy in STRATEGIES}) == 1
        assert len({tuple(runs[strategy, seed]["picks"][1]) for strategy in STRATEGIES}) == len(STRATEGIES)
    assert runs["random", 0]["picks"][0] != runs["random", 1]["picks"][0]


def test_a_test_set_is_only_measured_on(pool: Path, test_set: Path):
    _simulate(pool, "--test", test_set, strategies="entropy")
    before = _runs(pool)

    flipped = np.load(test_set)
    np.savez(test_set, F=flipped["F"] + 1, y=2 - flipped["y"])
    _simulate(pool, "--test", test_set, strategies="entropy")

    after = _runs(pool)
    assert [run["picks"] for run in after.values()] == [run["picks"] for run in before.values()]
    assert [run["accuracy"] for run in after.values()] != [run["accuracy"] for run in before.values()]


def test_a_killed_simulation_goes_on_where_it_was(pool: Path, test_set: Path, trained: list[int], monkeypatch):
    write = simulation.write_json

    def killed(path: Path, data: Any) -> None:
        write(path, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "write_json", killed)
    assert _simulate(pool, "--test", test_set, strategies="random,entropy").code == 130
    monkeypatch.setattr(simulation, "write_json", write)
    assert not list((pool.parent / "out").glob(".scratch-*"))

    done = _simulate(pool, "--test", test_set, strategies="random,entropy")

    assert done.code == 0, done.err
    assert len(_runs(pool)) == 2
    assert len(trained) == 2 * ROUNDS


def test_a_strategy_that_fails_is_named_and_the_others_go_on(pool: Path, test_set: Path, monkeypatch):
    compute = simulation.run_cell

    def failing(executor: LocalExecutor, plan: simulation.CellPlan) -> None:
        if plan.arm.name == "entropy":
            raise ZeroDivisionError("no pool")
        compute(executor, plan)

    monkeypatch.setattr(simulation, "run_cell", failing)

    done = _simulate(pool, "--test", test_set, strategies="entropy,random")

    assert done.code == 0, done.err
    assert "Failed: entropy, seed 0: ZeroDivisionError: no pool" in done.out
    assert {strategy for strategy, _ in _runs(pool)} == {"random"}


def test_without_a_test_set_all_strategies_of_a_seed_share_a_holdout(pool: Path):
    done = _simulate(pool, "--set", "evaluation.holdout_size=12", "--set", "evaluation.holdout_share=0.5")

    assert done.code == 0, done.err
    runs = _runs(pool)
    assert set(runs) == {(strategy, 0) for strategy in STRATEGIES}
    assert {run["accuracy"][0] for run in runs.values()} == {runs["random", 0]["accuracy"][0]}
    assert {run["n_test"] for run in runs.values()} == {12}
    assert {run["n_rest"] for run in runs.values()} == {ROWS - 12 - BATCH * ROUNDS}
    assert all(0 < run["rest"] <= 1 for run in runs.values())


def test_finished_cells_are_not_computed_again(simulated: tuple[Outcome, Path], trained: list[int]):
    _, pool = simulated
    before = (pool.parent / "runs.json").read_bytes()
    next((pool.parent / "out" / "cells").glob("entropy-seed1-*.json")).unlink()

    _simulate(pool, "--test", pool.parent / "test.npz", seeds=2)

    assert len(trained) == ROUNDS
    again, first = json.loads((pool.parent / "runs.json").read_bytes()), json.loads(before)
    assert [run["picks"] for run in again["runs"]] == [run["picks"] for run in first["runs"]]
    assert [run["accuracy"] for run in again["runs"]] == [run["accuracy"] for run in first["runs"]]
    assert not list((pool.parent / "out").glob(".scratch-*"))


def test_when_rows_run_out_the_last_batch_is_shorter(pool: Path, test_set: Path):
    small = write_features(pool.parent / "small.npz", 19, 0)

    done = _simulate(small, "--test", test_set, "--rounds", "9", strategies="entropy")

    assert done.code == 0, done.err
    run = _runs(pool)["entropy", 0]
    assert [len(batch) for batch in run["picks"]] == [8, 8, 3]
    assert sorted(_rows(run)) == list(range(19))
    assert run["n_labels"] == [8, 16, 19]


def test_equal_rows_are_asked_about_each_on_its_own(pool: Path, test_set: Path):
    same = write_features(pool.parent / "same.npz", 24, 0, F=np.tile(np.eye(3, 5), (8, 1)))

    done = _simulate(same, "--test", test_set, strategies="entropy")

    assert done.code == 0, done.err
    assert sorted(_rows(_runs(pool)["entropy", 0])) == list(range(24))


def test_a_strategy_may_have_settings_of_its_own(pool: Path, test_set: Path):
    drawn = "margin:perturb=power:beta=2"

    done = _simulate(pool, "--test", test_set, strategies=f"margin,{drawn},default")

    assert done.code == 0, done.err
    assert {strategy for strategy, _ in _runs(pool)} == {"margin", drawn, "default"}


def test_classes_may_be_names(pool: Path, test_set: Path):
    names = np.array(["ant", "bee", "cat"])
    write_features(pool, ROWS, 0, y=names[np.arange(ROWS) % 3])
    write_features(test_set, 60, 1, y=names[np.arange(60) % 3])

    done = _simulate(pool, "--test", test_set, strategies="entropy")

    assert done.code == 0, done.err
    assert _runs(pool)["entropy", 0]["accuracy"][-1] > 0.5


def test_a_seed_batch_of_one_class_predicts_that_class(pool: Path, test_set: Path):
    lopsided = np.zeros(ROWS, dtype=np.int64)
    lopsided[:2] = 1, 2
    write_features(pool, ROWS, 0, y=lopsided)

    done = _simulate(pool, "--test", test_set, strategies="random")

    assert done.code == 0, done.err
    assert _runs(pool)["random", 0]["accuracy"][0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, "has no array y; it has F"),
        ({"y": np.zeros(ROWS, dtype=int)}, "y has only the class 0"),
        ({"y": np.zeros(ROWS)}, "y is float64 [90]"),
        ({"y": np.arange(5)}, "y is int64 [5], and F has 90 rows"),
        ({"F": np.ones(ROWS)}, "F is float64 [90]"),
        ({"F": np.full((ROWS, 5), np.nan)}, "90 rows of F have numbers that are nan"),
        ({"F": np.full((ROWS, 5), 1e300)}, "too large for 32 bits"),
        ({"y": np.array([object()] * ROWS)}, "cannot be read"),
    ],
)
def test_odd_features_are_refused(pool: Path, changes: dict[str, Any], message: str):
    write_features(pool, ROWS, 0, **changes)

    done = _simulate(pool)

    assert done.code == 1
    assert message in done.err


def test_real_people_are_asked_and_the_truth_measures_what_nobody_was_asked_about(pool: Path):
    y = np.arange(ROWS) % 3
    write_features(pool, ROWS, 0, annotators=np.stack([(y + 1) % 3] * 2, axis=1))  # both are always wrong, and alike

    done = _simulate(pool, strategies="random")

    assert done.code == 0, done.err
    for run in _runs(pool).values():
        assert run["accuracy"][-1] > 0.5  # on the holdout: agreement with them
        assert run["rest"] < 0.3
    assert "Answers are those of 2 people, 1 to an image" in (pool.parent / "out" / "index.html").read_text()


def test_a_majority_that_is_right_gives_what_the_truth_gives(pool: Path, test_set: Path):
    y = np.arange(ROWS) % 3
    assert _simulate(pool, "--test", test_set, strategies="entropy").code == 0
    of_truth = _runs(pool)
    write_features(pool, ROWS, 0, annotators=np.stack([y, y, (y + 1) % 3], axis=1))

    assert _simulate(pool, "--test", test_set, "--annotators-per-image", "3", strategies="entropy").code == 0
    of_three = _runs(pool)
    assert _simulate(pool, "--test", test_set, strategies="entropy").code == 0
    of_one = _runs(pool)

    for key, run in of_truth.items():
        assert (of_three[key]["picks"], of_three[key]["accuracy"]) == (run["picks"], run["accuracy"])
        assert of_one[key]["accuracy"] != run["accuracy"]  # a third of the answers is wrong


def test_people_who_are_made_up_are_as_many_as_must_answer(pool: Path, test_set: Path):
    noise = ("--set", "labeling.oracle.noise=0.4")

    assert _simulate(pool, "--test", test_set, *noise, "--annotators-per-image", "3", strategies="random").code == 0

    assert all(run["n_labels"] == [BATCH, 2 * BATCH, 3 * BATCH] for run in _runs(pool).values())


@pytest.mark.parametrize("kind", ["-1", "nan", "text"])
def test_answers_of_people_who_were_not_asked_are_left_out(pool: Path, kind: str):
    y = np.arange(ROWS) % 3
    said = np.stack([y, np.where(y == 0, y, -1)], axis=1)  # the second person was asked about every third row
    answers = {"-1": said, "nan": np.where(said < 0, np.nan, said), "text": np.where(said < 0, "", said.astype(str))}
    write_features(pool, ROWS, 0, y=y.astype(str) if kind == "text" else y, annotators=answers[kind])

    data = read_features(pool)

    assert data.people is not None
    assert data.people.answers[:2] == (("0", "0"), ("1", None))
    done = _simulate(pool, "--annotators-per-image", "2")
    assert done.code == 1
    assert "60 of 90 images have fewer than 2 answers. The first of them is number 2" in done.err


@pytest.mark.parametrize(
    ("annotators", "more", "code", "message"),
    [
        (np.full((ROWS, 2), -1), [], 1, "nobody answered about row 0"),
        (np.zeros((5, 3), int), [], 1, "annotators is [5, 3], and F has 90 rows"),
        (np.zeros(ROWS, int), [], 1, "annotators is [90], and F has 90 rows"),
        (np.full((ROWS, 2), 7), [], 1, "annotators has the answer '7' in row 0, but y has no such class"),
        (np.full((ROWS, 2), "0"), [], 1, "annotators is <U1, but y is int64"),
        (np.zeros((ROWS, 2), int), ["--annotators-per-image", "3"], 2, "[labeling.oracle] columns names 2 people"),
        (np.zeros((ROWS, 2), int), ["--set", "labeling.oracle.noise=0.1"], 2, "noise is for simulated people only"),
    ],
)
def test_answers_that_cannot_be_used_are_refused(
    pool: Path, annotators: np.ndarray, more: list[str], code: int, message: str
):
    write_features(pool, ROWS, 0, annotators=annotators)

    done = _simulate(pool, *more)

    assert done.code == code
    assert message in done.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.arange(60)}, "y has the class 3, which"),
        ({"F": np.ones((60, 4))}, "F has 4 features, but that of"),
        ({"y": np.array(["0", "1"] * 30)}, "y is <U1, but that of"),
    ],
)
def test_a_test_set_that_does_not_fit_is_refused(pool: Path, test_set: Path, changes: dict[str, Any], message: str):
    write_features(test_set, 60, 1, **changes)

    done = _simulate(pool, "--test", test_set)

    assert done.code == 1
    assert message in done.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--strategies", "entropie"], "did you mean 'entropy'?"),
        (["--strategies", "entropy,entropy"], "'entropy' is named twice"),
        (["--strategies", "entropy:bta=1"], "did you mean 'beta'?"),
        (["--set", "model.heads"], "write SECTION.KEY=VALUE"),
        (["--set", "model.mode=finetune"], "given features have no trunk"),
    ],
)
def test_what_is_not_known_is_refused(pool: Path, more: list[str], message: str):
    done = _simulate(pool, *more)

    assert done.code == 2
    assert message in done.err


def test_a_file_that_is_no_archive_is_refused(pool: Path):
    pool.write_text("F,y")

    done = _simulate(pool)

    assert done.code == 1
    assert "It must be an .npz file" in done.err


PICTURES = ("--batch", "6", "--rounds", "2", "--seeds", "1", "--strategies", "random,entropy")


def _write_pictures(folder: Path, n: int, first: int = 0) -> Path:
    for number in range(first, first + n):
        label = ("cat", "dog")[number % 2]
        write_picture(folder / label / f"{number:03}.png", label=label, number=number)
    return folder


def test_labeled_images_are_simulated_with_the_settings_of_the_workspace(tmp_path: Path):
    _write_pictures(tmp_path / "photos", 40)
    tested = _write_pictures(tmp_path / "tested", 20, first=100)
    (tmp_path / "alloop.toml").write_text(render_toml(make_settings(pool={"near_duplicates": False})))

    done = alloop("simulate", "-C", tmp_path, "--folder", tmp_path / "photos", "--test", tested, "--json", *PICTURES)

    assert done.code == 0, done.err
    runs = done.data["runs"]
    assert {(run["strategy"], run["n_test"]) for run in runs} == {("random", 20), ("entropy", 20)}
    assert all(0 <= row < 40 for run in runs for batch in run["picks"] for row in batch)
    assert len(done.data["rows"]) == 40
    assert runs[0]["picks"][0] == runs[1]["picks"][0]
    assert max(run["accuracy"][-1] for run in runs) > 0.5


def test_a_table_may_hold_what_real_people_answered(tmp_path: Path):
    photos = _write_pictures(tmp_path / "photos", 40)
    other = {"cat": "dog", "dog": "cat"}
    rows = [(path, path.parent.name, other[path.parent.name]) for path in sorted(photos.rglob("*.png"))]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "ann"), *rows])
    (tmp_path / "alloop.toml").write_text(render_toml(make_settings(pool={"near_duplicates": False})))
    asked = ("--csv", tmp_path / "table.csv", "--set", 'labeling.oracle.columns=["ann"]')

    done = alloop("simulate", "-C", tmp_path, *asked, "--json", *PICTURES)

    assert done.code == 0, done.err
    for run in done.data["runs"]:  # Ann takes cats for dogs
        assert run["accuracy"][-1] > 0.5 > run["rest"]


def test_the_labels_of_a_workspace_can_be_simulated_on(tmp_path: Path):
    project = make_project(tmp_path, n=40, pool={"near_duplicates": False})
    with (project.folder / "truth.csv").open() as lines:
        known = [(row["file"], row["label"]) for row in csv.DictReader(lines)]
    with (project.folder / "known.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *known])
    assert alloop("labels", "import", "-C", project.folder, project.folder / "known.csv").code == 0

    done = alloop("simulate", "-C", project.folder, "--json", *PICTURES)

    assert done.code == 0, done.err
    assert {run["n_test"] for run in done.data["runs"]} == {8}
    assert all(run["n_rest"] == 40 - 8 - 12 for run in done.data["runs"])


def test_without_data_a_workspace_is_needed(tmp_path: Path):
    done = alloop("simulate", "-C", tmp_path)

    assert done.code == 2
    assert "not an alloop workspace" in done.err


def test_batches_that_use_up_the_pool_leave_no_rest_to_be_measured_on(pool: Path):
    done = _simulate(pool, "--rounds", "30", strategies="random")

    assert done.code == 0, done.err
    run = _runs(pool)["random", 0]
    assert len(_rows(run)) == ROWS - run["n_test"]
    assert (run["rest"], run["n_rest"]) == (None, 0)
    assert json.loads((pool.parent / "out" / "simulation.json").read_text())["summary"]["rows"][0]["rest"] is None
    assert "rest %" not in done.out
    assert "nan" not in done.out
