"""First sentences of the pages, in every state of a project."""

import pytest
from factories import at_bench, make_project, tools_of

from alloop.loop.rounds import steps
from alloop.loop.rounds.runner import RunOptions, run
from alloop.records import Interval
from alloop.report.gather import gather_status
from alloop.report.headlines import count, interval_of, next_step, of_project, standing


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


@pytest.mark.parametrize(("n", "words"), [(1, "1 image"), (0, "0 images"), (2287, "2,287 images")])
def test_numbers_have_their_noun(n, words):
    assert count(n, "image") == words


def test_an_estimate_has_its_interval_beside_it():
    assert interval_of(Interval(0.826, 0.8, 0.852, 200, "wilson 95%")) == "82.6 (80.0–85.2)"
    assert interval_of(None) == "–"
