"""A test set of one's own in place of a holdout."""

import csv
import shutil
from pathlib import Path

import pytest
from factories import at_bench, make_project, tools_of, write_picture, write_settings

from alloop.errors import ConfigError, HistoryError, LabelError
from alloop.loop.measuring.measure import evaluate
from alloop.loop.rounds.runner import RunOptions, Stage, run
from alloop.loop.rounds.steps import start_round
from alloop.project import Project
from alloop.records import Reason, Split
from alloop.store.annotations import list_labels
from alloop.store.images import count_pool, list_refs
from alloop.store.queries import list_queries
from alloop.store.rounds import find_last_model, list_metrics
from alloop.store.session import reading

N_TEST = 10


def write_test_folder(folder: Path) -> Path:
    for number in range(N_TEST):
        label = ("cat", "dog")[number % 2]
        write_picture(folder / label / f"{number}.png", label=label, number=1000 + number)
    return folder


def write_test_csv(folder: Path) -> Path:
    files = sorted(write_test_folder(folder / "tested").rglob("*.png"))
    with (folder / "test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("file", "label"), *((path.relative_to(folder), path.parent.name) for path in files)])
    return folder / "test.csv"


def _project(tmp_path: Path, test: str = "tested", **changes) -> Project:
    return make_project(tmp_path, n=40, evaluation={"test": test}, pool={"near_duplicates": False}, **changes)


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_test_set_is_measured_on_and_never_asked_about_or_trained_on(tmp_path: Path, kind: str):
    project = _project(tmp_path, "tested" if kind == "folder" else "test.csv")
    write_test_folder(project.folder / "tested") if kind == "folder" else write_test_csv(project.folder)

    run(tools_of(project), RunOptions(rounds=2))

    with reading(project.database) as session:
        queries, model = list_queries(session), find_last_model(session)
        assert model is not None
        metrics = list_metrics(session, model.id, "holdout")
        tested = {label.sha256: label.consensus.value for label in list_labels(session, Split.HOLDOUT)}
        trained = {ref.sha256 for ref in list_refs(session, Split.TRAIN)}
    assert len(tested) == N_TEST
    assert Reason.HOLDOUT not in {query.reason for query in queries}
    assert {query.sha256 for query in queries} <= trained
    assert (model.n_labels, model.n_holdout, metrics["accuracy"].n) == (6, N_TEST, N_TEST)
    assert "6 training labels are too few" in model.calibration.note


def test_measuring_again_fits_nothing_to_the_test_set(tmp_path: Path):
    project = _project(tmp_path)
    write_test_folder(project.folder / "tested")
    run(tools_of(project), RunOptions(rounds=2))
    with reading(project.database) as session:
        model = find_last_model(session)
        assert model is not None
        before = list_metrics(session, model.id, "holdout")

    _, after = at_bench(project, evaluate)

    assert {name: found.value for name, found in after.items()} == pytest.approx(
        {name: found.value for name, found in before.items()}, abs=1e-5
    )


def test_images_that_the_pool_had_already_and_their_near_copies_leave_it(tmp_path: Path):
    project = make_project(tmp_path, n=40, evaluation={"test": "tested"})
    photo = project.folder / "photos" / "0000.png"
    with reading(project.database) as session:
        copies = count_pool(session).images - count_pool(session).groups
    (project.folder / "tested" / "cat").mkdir(parents=True)
    shutil.copy(photo, project.folder / "tested" / "cat" / "mine.png")

    at_bench(project, start_round)

    with reading(project.database) as session:
        counts = count_pool(session)
        assert str(photo) not in {ref.path for ref in list_refs(session, Split.TRAIN)}
    assert (counts.images, counts.holdout, counts.holdout_labeled) == (40, 1, 1)
    assert counts.excluded <= copies


def test_labels_of_a_test_set_do_not_use_up_the_budget(tmp_path: Path):
    project = _project(tmp_path, loop={"label_budget": 8})
    write_test_folder(project.folder / "tested")

    ended = run(tools_of(project), RunOptions(rounds=None))

    assert ended.stage is Stage.DONE
    assert ended.because == "stopped: label budget reached: 8 of 8 labels"
    assert ended.labels == 8 + N_TEST


def test_a_test_set_that_is_not_there_is_refused(tmp_path: Path):
    project = _project(tmp_path)

    with pytest.raises(ConfigError, match="tested, which does not exist"):
        at_bench(project, start_round)


def test_a_test_set_with_another_class_is_refused(tmp_path: Path):
    project = _project(tmp_path)
    write_picture(project.folder / "tested" / "cow" / "1.png", label="cat", number=1)

    with pytest.raises(LabelError, match="'cow' is not one of the classes"):
        at_bench(project, start_round)


def test_a_listed_file_that_is_not_there_is_refused(tmp_path: Path):
    project = _project(tmp_path, "test.csv")
    (project.folder / "test.csv").write_text("file,label\nnone.png,cat\n")

    with pytest.raises(LabelError, match=r"line 2 names .*none\.png, which does not exist"):
        at_bench(project, start_round)


def test_what_rounds_are_measured_on_cannot_change(tmp_path: Path):
    project = make_project(tmp_path, n=40)
    run(tools_of(project), RunOptions(rounds=1))
    changed = write_settings(project, evaluation={"test": "tested"})

    with pytest.raises(HistoryError, match="test was not set in the last round, and is tested now"):
        at_bench(changed, start_round)
