from types import SimpleNamespace

import pytest

from alloop.report.worth import cost_so_far, duration


def status_of(annotators: dict[str, dict[str, int]], seconds: float | None):
    outlook = SimpleNamespace(seconds=seconds)
    return SimpleNamespace(annotators=annotators, findings=SimpleNamespace(outlook=outlook))


def test_the_cost_counts_every_answer_and_says_how_the_time_is_known():
    found = cost_so_far(status_of({"ann": {"label": 300, "skip": 50}, "ben": {"label": 50}}, 4.2))

    assert found == "400 answers so far, about 28 minutes: 400 times the median of 4.2 s a label."


def test_without_times_the_cost_is_the_number_of_answers():
    assert cost_so_far(status_of({"ann": {"label": 1}}, None)) == "1 answer so far. How long they took is not known."
    assert cost_so_far(status_of({}, 3.0)) == "Nobody has answered yet."


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 seconds"), (90, "2 minutes"), (5400, "1.5 hours")])
def test_a_duration_has_a_unit_that_fits(seconds: float, words: str):
    assert duration(seconds) == words
