"""Automatic labels in a real workspace: what gets one, what never does, and what people's answers do to them."""

import contextlib
import csv
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, alloop
from factories import (
    add_truth,
    at_bench,
    copy_project,
    make_project,
    tools_of,
    write_picture,
    write_settings,
)

from alloop.engine import pool_features
from alloop.errors import LeaseHeld
from alloop.loop.automatic import promise as promises
from alloop.loop.automatic.promise import Promise, label_automatically
from alloop.loop.intake.ingest import add_images
from alloop.loop.rounds.runner import RunOptions, run
from alloop.loop.workbench import open_workbench
from alloop.project import Project
from alloop.report.model_card import make_card
from alloop.store.annotations import list_labels
from alloop.store.auto_labels import list_auto_labels, list_looks
from alloop.store.queries import list_queries
from alloop.store.rounds import find_last_model
from alloop.store.session import reading, transaction

CHANGES: dict[str, dict[str, Any]] = {
    "evaluation": {"holdout_size": 70, "holdout_share": 0.5},
    "loop": {"batch_size": 12, "max_rounds": 2},
}
EASY = ("--max-error", "0.2")  # 17 images without an error pass at the level of the first look, 2.5 %


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace of 170 pictures with two answered rounds and a model."""
    project = make_project(tmp_path_factory.mktemp("trained"), n=170, **CHANGES)
    run(tools_of(project), RunOptions(rounds=None))
    project.close()
    return project.folder


@pytest.fixture
def project(trained_folder: Path, tmp_path: Path) -> Project:
    return copy_project(trained_folder, tmp_path / "pets", {"project": {"classes": ["cat", "dog"]}, **CHANGES})


def autolabel(project: Project, *arguments: str) -> Outcome:
    return alloop("autolabel", *arguments, "-C", project.folder)


def rows(project: Project, *, without: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """Return everything in the database, but for some tables."""
    with contextlib.closing(sqlite3.connect(project.folder / "alloop.db")) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: connection.execute(f"SELECT * FROM {name}").fetchall()
            for name in tables
            if name not in {"lease", *without}
        }


def truth_of(project: Project) -> dict[str, str]:
    with (project.folder / "truth.csv").open(newline="") as file:
        return {row["file"]: row["label"] for row in csv.DictReader(file)}


def auto_classes(project: Project) -> dict[int, str]:
    with reading(project.database) as session:
        return {label.image_id: label.class_name for label in list_auto_labels(session)}


def test_sure_images_get_a_label_that_is_not_a_persons(project: Project):
    with reading(project.database) as session:
        before = list_labels(session)

    outcome = autolabel(project, *EASY, "--json")

    assert outcome.code == 0, outcome.err
    (chain,) = outcome.data["chains"]
    assert chain["is_accepted"]
    assert outcome.data["n_labeled"] == outcome.data["n_accepted"] > 20
    truth = truth_of(project)
    with reading(project.database) as session:
        assert list_labels(session) == before
        found = list_auto_labels(session)
        labeled = {label.image_id for label in before}
    assert len(found) == outcome.data["n_labeled"]
    assert not labeled & {label.image_id for label in found}
    assert all(label.probability >= label.threshold for label in found)
    wrong = sum(truth[str(label.path)] != label.class_name for label in found)
    assert wrong <= 0.2 * len(found)
    status = alloop("status", "-C", project.folder, "--json").data
    assert status["pool"]["labeled"] == len(before)
    assert status["auto"]["labels"] == len(found)
    assert "automatic label" in alloop("status", "-v", "-C", project.folder).out


def test_automatic_labels_are_shown_as_what_they_are(project: Project, tmp_path: Path):
    n = autolabel(project, *EASY, "--json").data["n_labeled"]
    with reading(project.database) as session:
        label, *_ = list_auto_labels(session)
    counts = alloop("status", "-C", project.folder, "--json").data["auto"]["classes"]
    assert set(counts) <= {"cat", "dog"}
    assert sum(counts.values()) == n

    alloop("report", "-o", tmp_path / "report.html", "-C", project.folder)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search(rf"{n} images? ha(s|ve) an automatic label", page)
    assert "Automatic, by no person" in page

    said = alloop("explain", label.sha256, "-C", project.folder, "--json").data
    assert said["label"] is None
    assert said["automatic"]["class_name"] == label.class_name
    assert said["automatic"]["model"] == label.model
    assert said["automatic"]["probability"] >= said["automatic"]["threshold"] == label.threshold
    words = alloop("explain", label.sha256, "-C", project.folder).out
    assert f"Its label {label.class_name} is automatic" in " ".join(words.split())

    autolabel(project, "--undo")
    assert alloop("explain", label.sha256, "-C", project.folder, "--json").data["automatic"] is None


def test_a_dry_run_is_a_look_and_looking_again_costs_nothing(project: Project):
    dry = autolabel(project, *EASY, "--dry-run", "--json").data
    assert (dry["look"], dry["is_new"], dry["n_labeled"]) == (1, True, 0)

    again = autolabel(project, *EASY, "--json").data

    assert (again["look"], again["is_new"]) == (1, False)
    assert again["chains"] == dry["chains"]
    assert again["n_labeled"] == dry["n_accepted"]
    other = autolabel(project, "--max-error", "0.3", "--dry-run", "--json").data
    assert (other["look"], other["is_new"]) == (2, True)
    assert other["level"] == pytest.approx(0.05 / 6)
    with reading(project.database) as session:
        assert [look.max_error for look in list_looks(session)] == [0.2, 0.3]


def test_undo_leaves_everything_else_as_it_was(project: Project):
    mine = ("auto_label", "autolabel_look", "event", "sqlite_sequence")
    before = rows(project, without=mine)
    n = autolabel(project, *EASY, "--json").data["n_labeled"]

    outcome = autolabel(project, "--undo", "--json")

    assert outcome.data == {"withdrawn": n}
    assert rows(project, without=mine) == before
    assert autolabel(project, "--undo", "--json").data == {"withdrawn": 0}
    assert alloop("status", "-C", project.folder, "--json").data["auto"] is None


def test_a_persons_label_wins_also_if_it_arrives_while_images_are_predicted(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    autolabel(project, *EASY)
    with reading(project.database) as session:
        first, second, *_ = list_auto_labels(session)
    sheet = project.folder / "mine.csv"
    sheet.write_text(f"sha256,label\n{first.sha256},cat\n")
    alloop("labels", "import", sheet, "-C", project.folder)
    sheet.write_text(f"sha256,label\n{second.sha256},dog\n")
    predict = promises.predict

    def interrupted(bench: Any, *given: Any) -> Any:
        from alloop.loop.intake.labels import import_labels

        found = predict(bench, *given)
        import_labels(bench, sheet)
        return found

    monkeypatch.setattr(promises, "predict", interrupted)
    autolabel(project, *EASY)

    with reading(project.database) as session:
        auto = {label.image_id for label in list_auto_labels(session)}
        people = {label.image_id: label.consensus.value for label in list_labels(session)}
    assert not auto & {first.image_id, second.image_id}
    assert (people[first.image_id], people[second.image_id]) == ("cat", "dog")


def test_people_audit_automatic_labels_without_seeing_them(project: Project):
    n = autolabel(project, *EASY, "--json").data["n_labeled"]

    drawn = autolabel(project, "--audit", "15", "--json")

    assert drawn.code == 0, drawn.err
    assert drawn.data["n"] == 15
    with reading(project.database) as session:
        asked = [query for query in list_queries(session) if query.reason == "audit"]
    assert len(asked) == 15
    assert {query.probability for query in asked} == {15 / drawn.data["of"]}
    assert {(query.predicted, query.confidence) for query in asked} == {(None, None)}
    assert all(query.task_id for query in asked)
    assert alloop("replay", str(asked[0].round_number), "-C", project.folder).code == 0
    assert "audit" in alloop("explain", asked[0].sha256[:12], "-C", project.folder).out
    alloop("pull", "-C", project.folder)
    report = alloop("status", "-C", project.folder, "--json").data["auto"]
    assert (report["audited"], report["waiting"], report["labels"]) == (15, 0, n - 15)
    assert report["error"]["value"] == report["errors"] / 15
    assert "Audit:" in report["says"]


def test_an_audit_without_automatic_labels_is_refused(project: Project):
    outcome = autolabel(project, "--audit", "5")

    assert outcome.code == 1
    assert "alloop autolabel --max-error" in outcome.err


def test_a_new_promise_replaces_the_labels_of_the_old_one(project: Project):
    autolabel(project, *EASY)
    second = autolabel(project, "--max-error", "0.4", "--json").data

    with reading(project.database) as session:
        found = list_auto_labels(session)
    assert {label.look for label in found} == {2}
    assert len(found) == second["n_labeled"]


def test_a_promise_that_fails_labels_nothing_and_says_what_is_missing(project: Project):
    outcome = autolabel(project, "--max-error", "0.001")

    assert outcome.code == 0
    assert "Nothing was labeled" in outcome.out
    assert "more holdout labels" in outcome.out
    with reading(project.database) as session:
        assert list_auto_labels(session) == []
        assert len(list_looks(session)) == 1


def test_labels_of_an_earlier_look_stay_if_a_later_one_fails(project: Project):
    n = autolabel(project, *EASY, "--json").data["n_labeled"]

    outcome = autolabel(project, "--max-error", "0.001")

    assert f"{n} automatic labels of an earlier look stay" in outcome.out
    with reading(project.database) as session:
        assert {label.look for label in list_auto_labels(session)} == {1}


def test_the_promise_for_each_class_tests_each_class(project: Project):
    data = autolabel(project, "--max-error", "0.3", "--classwise", "--json").data

    assert [chain["class_name"] for chain in data["chains"]] == ["cat", "dog"]
    with reading(project.database) as session:
        names = {label.class_name for label in list_auto_labels(session)}
    assert names == {chain["class_name"] for chain in data["chains"] if chain["is_accepted"]}


def test_images_added_after_the_holdout_was_drawn_get_no_label(project: Project):
    path = write_picture(project.folder / "photos" / "new.png", label="cat", number=9999)
    add_truth(project.folder / "truth.csv", {str(path): "cat"})
    at_bench(project, add_images, [str(path)])

    outcome = autolabel(project, *EASY)

    assert "1 images were added after the holdout was drawn" in outcome.out
    with reading(project.database) as session:
        assert str(path) not in {label.path for label in list_auto_labels(session)}


def test_missing_files_are_left_out(project: Project):
    dry = autolabel(project, *EASY, "--dry-run", "--json").data
    paths = sorted((project.folder / "photos").glob("*.png"))[:3]
    for path in paths:
        path.unlink()
    alloop("pool", "check", "-C", project.folder)

    data = autolabel(project, *EASY, "--json").data

    assert data["n_rest"] <= dry["n_rest"]
    with reading(project.database) as session:
        assert not {str(path) for path in paths} & {label.path for label in list_auto_labels(session)}


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--max-error", "0"),
        ("--max-error", "1"),
        ("--max-error", "0.1", "--undo"),
        ("--audit", "0"),
        ("--undo", "--dry-run"),
        ("--max-error", "0.1", "--confidence", "1"),
    ],
)
def test_arguments_without_a_meaning_are_refused(project: Project, arguments: tuple[str, ...]):
    assert autolabel(project, *arguments).code == 2


def test_a_workspace_without_a_model_says_so(tmp_path: Path):
    outcome = autolabel(make_project(tmp_path), *EASY)

    assert outcome.code == 1
    assert "no model yet" in outcome.err


def test_fewer_than_fifty_holdout_labels_are_refused(tmp_path: Path):
    project = make_project(tmp_path)
    run(tools_of(project), RunOptions(rounds=2))

    outcome = autolabel(project, *EASY)

    assert outcome.code == 1
    assert "at least 50 holdout images" in outcome.err
    with reading(project.database) as session:
        assert list_looks(session) == []


def test_a_class_that_the_model_does_not_know_is_refused(project: Project):
    changed = write_settings(project, project={"classes": ["cat", "dog", "eel"]}, **CHANGES)

    outcome = autolabel(changed, *EASY)

    assert outcome.code == 1
    assert "'eel'" in outcome.err


def test_a_test_set_is_no_holdout(project: Project):
    changed = write_settings(project, evaluation={"test": "truth.csv"}, loop=CHANGES["loop"])

    outcome = autolabel(changed, *EASY)

    assert outcome.code == 2
    assert "test set" in outcome.err


def test_another_writer_is_waited_for(project: Project):
    with open_workbench(tools_of(project)):
        outcome = autolabel(project, *EASY)

    assert outcome.code == LeaseHeld.exit_code


def test_a_crash_before_the_end_records_nothing(project: Project, monkeypatch: pytest.MonkeyPatch):
    before = rows(project)

    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("no power")

    monkeypatch.setattr(promises, "add_event", crash)
    with pytest.raises(RuntimeError, match="no power"):
        at_bench(project, label_automatically, Promise(0.2))

    assert rows(project) == before


def test_automatic_labels_teach_only_on_request(project: Project):
    from alloop.loop.rounds.training import read_labels

    autolabel(project, *EASY)
    taught = write_settings(project, train={"use_auto_labels": True}, **CHANGES)
    with reading(project.database) as session:
        auto = {label.image_id: label.class_name for label in list_auto_labels(session)}
        off, on = read_labels(session, project.config), read_labels(session, taught.config)

    assert off.auto == ()
    assert {ref.image_id: name for name, ref in on.auto} == auto
    assert (on.train, on.holdout) == (off.train, off.holdout)
    assert on.digest() != off.digest()


def test_automatic_labels_are_not_counted_as_labels_of_the_model(project: Project):
    n_auto = autolabel(project, *EASY, "--json").data["n_labeled"]
    write_settings(project, train={"use_auto_labels": True}, **CHANGES)

    trained = alloop("train", "-C", project.folder, "--json")

    assert trained.code == 0, trained.err
    with reading(project.database) as session:
        people = [label for label in list_labels(session) if label.split == "train"]
        model = find_last_model(session)
        assert model is not None
        card = make_card(session, project, model, 2, None)
    assert f"{n_auto} automatic labels, which no person gave, were learned as well." in card
    assert trained.data["labels"] == model.n_labels == len(people)
    assert model.history["n_labels"] == len(people) + n_auto


def test_a_model_that_was_taught_by_automatic_labels_cannot_label_automatically(project: Project):
    changed = write_settings(project, train={"use_auto_labels": True}, **CHANGES)
    with transaction(changed.database) as session:
        from sqlalchemy import text

        session.execute(
            text("UPDATE model_version SET config = json_set(config, '$.train.use_auto_labels', json('true'))")
        )

    outcome = autolabel(changed, *EASY)

    assert outcome.code == 1
    assert "trained on automatic labels" in outcome.err


def test_a_deleted_cache_changes_nothing(project: Project):
    before = autolabel(project, *EASY, "--json")
    labeled = auto_classes(project)
    shutil.rmtree(project.folder / "cache")
    pool_features._last.clear()  # as in another process

    after = autolabel(project, *EASY, "--json")

    assert (before.code, after.code) == (0, 0), after.err
    assert auto_classes(project) == labeled
    assert labeled
