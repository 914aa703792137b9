"""Progress says how fast the work is and how long it still takes."""

import pytest

from alloop.cli import _options


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be changed by the test."""
    now = [100.0]
    monkeypatch.setattr(_options.time, "monotonic", lambda: now[0])
    return now


def test_lines_say_images_a_second_and_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    say = _options._Lines()

    say("reading images", 100, 2000)
    clock[0] += 10
    say("reading images", 600, 2000)
    clock[0] += 10
    say("reading images", 2000, 2000)
    say("score", 0, 10)

    assert capsys.readouterr().err.splitlines() == [
        "reading images: 100/2000",
        "reading images: 600/2000, 50 a second, 0:00:28 left",
        "reading images: 2000/2000, 95 a second",
        "score: 0/10",
    ]


def test_slow_work_and_work_of_unknown_size_have_a_pace_too(clock: list[float]) -> None:
    pace = _options.Pace(0)
    clock[0] += 8

    assert pace.say(2, 4) == "0.25 a second, 0:00:08 left"
    assert pace.say(2, 0) == ""


def test_a_bar_shows_the_pace(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    bar = _options._Bar()

    bar("reading images", 0, 200)
    clock[0] += 2
    bar("reading images", 100, 200)
    shown = [column.render(bar._bar.tasks[0]).plain for column in bar._bar.columns if hasattr(column, "text_format")]
    bar("reading images", 200, 200)

    assert shown[-1] == "50 a second, 0:00:02 left"
