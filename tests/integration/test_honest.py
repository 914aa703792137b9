"""Sentences of `alloop status` and `alloop report` for a growing holdout and rounds that stop by evidence."""

import base64
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import alloop
from factories import make_project, tools_of, write_settings
from sqlalchemy import text

from alloop.loop.rounds.runner import RunOptions, Stage, run
from alloop.project import Project


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """90 images, holdout 20, then three rounds of 10 that add 2 each to the holdout. Only to be read."""
    project = make_project(
        tmp_path_factory.mktemp("grown"),
        n=90,
        loop={"batch_size": 10, "max_rounds": 4},
        evaluation={"holdout_size": 20, "holdout_share": 0.5, "holdout_growth": 0.2},
    )
    assert run(tools_of(project), RunOptions(rounds=None)).stage is Stage.DONE
    return project


def rows(project: Project, statement: str) -> list[tuple[object, ...]]:
    with project.database.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def test_what_later_rounds_draw_is_asked_kept_from_training_and_measured_apart(grown: Project):
    draws = rows(
        grown,
        "SELECT r.number, d.is_growth, d.n_images, d.n_groups FROM holdout_draw d JOIN round r ON r.id = d.round_id "
        "ORDER BY 1",
    )
    # Rounds 1 to 3 and the one that the round limit ends; left for round 1 are 90 - 20 - 10 images.
    assert draws == [(0, 0, 20, 90), (1, 1, 2, 60), (2, 1, 2, 48), (3, 1, 2, 36), (4, 1, 2, 24)]
    drawn: dict[object, set[object]] = {number: set() for number in range(5)}
    for number, image_id in rows(
        grown, "SELECT r.number, h.image_id FROM holdout_image h JOIN round r ON r.id = h.round_id"
    ):
        drawn[number].add(image_id)
    assert [len(images) for images in drawn.values()] == [20, 2, 2, 2, 2]
    assert set().union(*drawn.values()) == {
        image_id for (image_id,) in rows(grown, "SELECT id FROM image WHERE split = 'holdout'")
    }
    later = set().union(*(drawn[number] for number in range(1, 5)))
    asked = rows(
        grown,
        "SELECT q.image_id, q.reason, q.probability FROM query q JOIN round r ON r.id = q.round_id "
        "WHERE r.number > 0 AND q.reason = 'holdout' ORDER BY 3",
    )
    assert {image_id for image_id, *_ in asked} == later - drawn[4]
    assert [probability for *_, probability in asked] == pytest.approx([2 / 60] * 2 + [2 / 48] * 2 + [2 / 36] * 2)
    others = rows(grown, "SELECT image_id FROM query WHERE reason <> 'holdout'")
    assert not later & {image_id for (image_id,) in others}
    measured = rows(
        grown,
        "SELECT r.number, k.split, k.n FROM metric k JOIN model_version m ON m.id = k.model_version_id "
        "JOIN round r ON r.id = m.round_id WHERE k.name = 'accuracy' AND k.split IN ('holdout', 'grown') ORDER BY 1, 2",
    )
    assert measured == [
        (1, "holdout", 20),
        (2, "grown", 2),
        (2, "holdout", 20),
        (3, "grown", 4),
        (3, "holdout", 20),
        (4, "grown", 6),
        (4, "holdout", 20),
    ]


def test_every_model_has_its_holdout_predictions_beside_it(grown: Project):
    for number, n in ((1, 20), (2, 22), (3, 24), (4, 26)):
        table = pq.read_table(grown.paths.holdout(number))
        assert table.num_rows == n
        assert sum(table["grown"].to_pylist()) == n - 20
        truth = dict(rows(grown, "SELECT image_id, class_name FROM label"))
        assert table["target"].to_pylist() == [truth[image_id] for image_id in table["image_id"].to_pylist()]


def test_status_says_what_the_rounds_show(grown: Project):
    shown = alloop("status", "-v", "-C", grown.folder).out
    short = " ".join(alloop("status", "-C", grown.folder).out.split())
    data = alloop("status", "-C", grown.folder, "--json").data["findings"]

    assert "Better than round 3: " in shown
    assert " Not compared: 4 random labels and 27 acquired ones so far" in short
    assert "([acquisition]" in short
    assert "When to stop  Now: round limit reached: 4 of 4 rounds." in shown
    assert " holdout images drawn later, from those unlabeled then: " in shown
    assert "\n* holds: round limit reached: 4 of 4 rounds\n" in shown
    assert "  does not hold: no label_budget is set; labels so far: 66" in shown
    assert "so disagreement among people lowers it." in shown
    assert data["better"]["comparison"]["gain"]["n"] == 20
    assert data["matched"]["skipped"]
    assert data["grown"]["n"] == 6
    assert [rule["name"] for rule in data["rules"]] == [
        "label budget",
        "round limit",
        "pool exhausted",
        "target accuracy",
        "learning curve flat",
        "predictions stable",
    ]


def test_the_agreement_of_two_rounds_is_that_of_their_score_files(grown: Project):
    said = rows(
        grown,
        "SELECT r.number, b.number, a.share, a.n FROM agreement a JOIN round r ON r.id = a.round_id "
        "JOIN round b ON b.id = a.before_id ORDER BY 1",
    )
    assert [number for number, *_ in said] == [2, 3]
    for number in (2, 3):
        tables = [pq.read_table(grown.paths.scores(at)).to_pydict() for at in (number - 1, number)]
        old, new = (dict(zip(one["image_id"], one["predicted"], strict=True)) for one in tables)
        shared = old.keys() & new.keys()

        _, before, share, n = said[number - 2]

        assert (before, n) == (number - 1, len(shared))
        assert share == pytest.approx(sum(old[image] == new[image] for image in shared) / len(shared))


def test_a_report_is_one_page_with_its_pictures_inside(grown: Project, tmp_path: Path):
    out = tmp_path / "page.html"

    said = alloop("report", "-C", grown.folder, "-o", out, "--json").data

    page = out.read_text()
    assert said == {"report": str(out)}
    pictures = re.findall(r'<img src="data:image/jpeg;base64,([A-Za-z0-9+/=]+)"', page)
    assert pictures
    assert all(base64.b64decode(picture).startswith(b"\xff\xd8") for picture in pictures)
    for words in ("Stop rules", "Labels per class", "oracle-1", "Better than round 3", "Rounds", "learned from"):
        assert words in page


def test_a_report_of_a_project_without_rounds_says_what_there_is(tmp_path: Path):
    project = make_project(tmp_path, n=10)

    assert alloop("report", "-C", project.folder).out == f"Report in {project.folder / 'report.html'}.\n"
    assert "10 images, 0 of them labeled." in (project.folder / "report.html").read_text()


def test_a_run_stops_when_the_accuracy_is_reached_and_goes_on_when_more_is_wanted(tmp_path: Path):
    project = make_project(tmp_path, loop={"target_accuracy": 0.3})
    assert run(tools_of(project), RunOptions(rounds=None)).stage is Stage.DONE
    reason = rows(project, "SELECT closed_because FROM round ORDER BY number DESC LIMIT 1")[0][0]
    assert str(reason).startswith("stopped: target accuracy reached: accuracy ")
    n = rows(project, "SELECT count(*) FROM label")[0][0]

    run(tools_of(write_settings(project, loop={"target_accuracy": 0.999})), RunOptions(rounds=None))

    assert rows(project, "SELECT count(*) FROM label")[0][0] > n


def test_a_run_stops_when_predictions_are_stable_before_it_asks_again(tmp_path: Path):
    project = make_project(tmp_path, loop={"stop_when_stable": True, "stable_agreement": 0.01, "stable_rounds": 1})

    run(tools_of(project), RunOptions(rounds=None))

    states = rows(project, "SELECT number, closed_because FROM round ORDER BY number")
    assert [number for number, _ in states] == [0, 1, 2]
    assert "of the unlabeled images kept their predicted class" in str(states[-1][1])
    assert rows(project, "SELECT count(*) FROM query q JOIN round r ON r.id = q.round_id WHERE r.number = 2") == [(0,)]


def test_evaluating_again_keeps_what_was_drawn_later_apart(grown: Project):
    before = rows(grown, "SELECT split, name, n FROM metric ORDER BY model_version_id, split, name")

    assert alloop("evaluate", "-C", grown.folder, "--json").data["metrics"]["accuracy"]["n"] == 20

    assert rows(grown, "SELECT split, name, n FROM metric ORDER BY model_version_id, split, name") == before
