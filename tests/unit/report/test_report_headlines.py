"""First sentences of the pages, in every state of a project."""

import dataclasses

import pytest
from factories import at_bench, make_project, tools_of

from alloop.loop.rounds import steps
from alloop.loop.rounds.runner import RunOptions, run
from alloop.records import Interval
from alloop.report.gather import find_label_place, gather_status
from alloop.report.headlines import (
    count,
    five_lines,
    gain_of,
    interval_of,
    look_at,
    next_step,
    of_project,
    standing,
    where_to_label,
)
from alloop.report.shown import TASKS
from alloop.store.session import transaction
from alloop.store.workspace import set_project

SHOWN = TASKS["classification"]
SUBJECTS = ("Project", "Next", "Accuracy", "Did it help?", "When to stop")


def test_a_new_project_says_its_first_step(tmp_path):
    project = make_project(tmp_path, n=12)

    status = gather_status(project)

    assert of_project(status).says == "No model yet."
    assert next_step(status).startswith("`alloop run` takes the first step")
    assert standing(status) == "12 images · no round yet"


def test_an_empty_pool_says_how_to_fill_it(tmp_path):
    assert of_project(gather_status(make_project(tmp_path, n=4, add=False))).rests_on == "`alloop pool add` adds them."


def test_every_state_of_a_round_has_a_next_step(tmp_path):
    project = make_project(tmp_path, n=40)
    run(tools_of(project), RunOptions(rounds=1))
    at_bench(project, steps.start_round)
    seen = []
    for step in (steps.train, steps.score, steps.select):
        seen.append(next_step(gather_status(project)))
        at_bench(project, step, 1)
    seen.append(next_step(gather_status(project)))

    assert [sentence.split(" ")[:4] for sentence in seen] == [
        ["The", "next", "step", verb] for verb in ("trains", "scores", "chooses", "sends")
    ]


def test_a_measured_model_is_named_by_its_accuracy_with_interval_and_number(tmp_path):
    project = make_project(tmp_path, n=40)
    run(tools_of(project), RunOptions(rounds=2))

    status = gather_status(project)

    accuracy = next(row for row in reversed(status.rounds) if "accuracy" in row.metrics).metrics["accuracy"]
    head = of_project(status)
    assert head.says.startswith(f"The model is right on {100 * accuracy.value:.1f} % of images it has never seen")
    assert f"Between {100 * accuracy.low:.1f} and {100 * accuracy.high:.1f} %" in head.rests_on
    assert f"measured on {accuracy.n} images" in head.rests_on


def test_a_stop_rule_that_holds_is_the_next_step(tmp_path):
    project = make_project(tmp_path, n=40, loop={"max_rounds": 1})
    run(tools_of(project), RunOptions())

    assert next_step(gather_status(project)).startswith("The loop has stopped: round limit reached")


def lines_of(project):
    """The five lines of a project, by subject."""
    found = five_lines(gather_status(project), SHOWN)
    assert tuple(subject for subject, _ in found) == SUBJECTS
    assert all(sentence and "None" not in sentence and "nan" not in sentence for _, sentence in found)
    return dict(found)


def test_five_lines_without_images_and_without_a_round(tmp_path):
    empty = lines_of(make_project(tmp_path / "empty", n=4, add=False))
    assert empty["Project"] == "pets: 0 images."
    assert empty["Next"] == "`alloop pool add` adds images."
    assert empty["Accuracy"] == "No images yet. `alloop pool add` adds them."
    assert empty["When to stop"] == "Nothing has begun: there are no images yet."

    new = lines_of(make_project(tmp_path / "new", n=12))
    assert new["Project"].startswith("pets: no round yet. 12 images, 0 labeled")
    assert new["Did it help?"] == "Nobody can say yet: this needs two measured models."
    assert new["When to stop"].startswith("No stop rule is set; at most 12 images could still be asked about.")


def test_five_lines_while_people_label_say_who_has_to_act_and_where(tmp_path):
    project = make_project(tmp_path, n=30, labeling={"backend": "csv"}, loop={"batch_size": 6, "label_budget": 20})
    run(tools_of(project), RunOptions())

    said = lines_of(project)

    assert said["Project"].startswith("pets: round 0 waits for answers (0 of ")
    after = " wait for an answer. After that, `alloop run` trains again."
    assert said["Next"].endswith(f"{after} Fill in the sheets in `sheets`.")
    status = dataclasses.replace(gather_status(project), sheets=None, label_at="http://localhost:8080/projects/7/data")
    assert next_step(status).endswith(" trains again. Label at http://localhost:8080/projects/7/data")
    assert said["Accuracy"].startswith("No model yet. Answers so far: 0 of ")
    assert said["When to stop"].startswith("Not yet: label budget not reached: 0 of 20 labels")


def test_the_place_to_label_is_the_project_in_label_studio(tmp_path):
    project = make_project(
        tmp_path, n=4, labeling={"backend": "label-studio"}, labeling__label_studio={"url": "http://ls"}
    )
    assert find_label_place(project) is None

    with transaction(project.database) as session:
        set_project(session, "label-studio", "7")

    assert find_label_place(project) == gather_status(project).label_at == "http://ls/projects/7/data"
    assert where_to_label(find_label_place(project)) == " Label at http://ls/projects/7/data"


def test_five_lines_of_a_trained_a_closed_and_a_stopped_project(tmp_path):
    project = make_project(tmp_path, n=40, loop={"batch_size": 6, "max_rounds": 2})
    run(tools_of(project), RunOptions(rounds=1))
    assert lines_of(project)["Next"] == "Round 0 is closed: 14 of 14 images answered. `alloop run` begins the next one."
    at_bench(project, steps.start_round)
    at_bench(project, steps.train, 1)

    trained = lines_of(project)
    assert trained["Project"].startswith("pets: round 1 has a model. 40 images, 14 labeled: 6 to train on")
    measured = gather_status(project).rounds[-1].metrics["accuracy"]
    low, high = 100 * measured.low, 100 * measured.high
    assert trained["Accuracy"] == (
        f"{100 * measured.value:.1f} %, between {low:.1f} and {high:.1f} % with 95 % confidence: round 1, "
        "8 images drawn at random, which it never learned from."
    )
    assert "Not compared" in trained["Did it help?"]

    run(tools_of(project), RunOptions(rounds=None))
    stopped = lines_of(project)
    assert stopped["Next"].startswith("The loop has stopped: round limit reached: 2 of 2 rounds.")
    assert stopped["When to stop"] == "Now: round limit reached: 2 of 2 rounds."
    assert stopped["Did it help?"].startswith(("The last round ", "Too early to say whether the last round helped"))


def test_problems_are_counted_and_the_first_one_is_named():
    assert look_at(()) == ""
    assert look_at(("1 file is missing",)) == "1 file is missing"
    assert look_at(("1 file is missing", "No training label yet: fish")) == (
        "2 things need a look (`alloop status -v` shows all). The first: 1 file is missing"
    )


@pytest.mark.parametrize(("n", "words"), [(1, "1 image"), (0, "0 images"), (2287, "2,287 images")])
def test_numbers_have_their_noun(n, words):
    assert count(n, "image") == words


def test_an_estimate_has_its_interval_beside_it():
    assert interval_of(Interval(0.826, 0.8, 0.852, 200, "wilson 95%")) == "82.6 (80.0–85.2)"
    assert interval_of(None) == "–"


def test_a_gain_has_its_sign_and_its_interval():
    assert gain_of(Interval(0.045, 0.019, 0.071, 200, "")) == "+4.5 (1.9 to 7.1)"
    assert gain_of(Interval(-0.01, -0.03, 0.01, 200, "")) == "−1.0 (−3.0 to 1.0)"
    assert gain_of(None) == "–"
