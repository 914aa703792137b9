"""Places of the learning curve in its picture, by hand arithmetic."""

import pytest

from alloop.records import CurvePoint, Interval
from alloop.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, make_curve


def point(n: int, value: float, low: float, high: float) -> CurvePoint:
    return CurvePoint(n, Interval(value, low, high, 100, "wilson 95%"))


def test_the_curve_spans_the_picture_and_says_its_ends():
    chart = make_curve([point(40, 0.7, 0.6, 0.8), point(80, 0.8, 0.7, 0.9), point(140, 0.85, 0.8, 0.95)])

    assert chart is not None
    assert [tick.words for tick in chart.rows] == ["60", "70", "80", "90", "100"]
    assert (chart.rows[0].place, chart.rows[-1].place) == (HEIGHT - BOTTOM, TOP)
    assert (chart.dots[0].x, chart.dots[-1].x) == (LEFT, WIDTH - RIGHT)
    assert chart.dots[1].x == pytest.approx(LEFT + 0.4 * (WIDTH - LEFT - RIGHT))
    assert chart.dots[1].y == pytest.approx((HEIGHT - BOTTOM + TOP) / 2)  # 80 % is in the middle
    assert chart.band.split()[0] == f"{LEFT}.0,{chart.dots[1].y}"  # upper end of the first interval, also 80 %
    assert chart.end.words == "85.0 % asked"
    assert "from 70.0 (60.0–80.0) % with 40 labels to 85.0 (80.0–95.0) %" in chart.summary


def test_the_random_arm_stands_beside_the_curve_on_the_same_axes():
    asked = [point(40, 0.7, 0.6, 0.8), point(80, 0.8, 0.7, 0.9)]
    chart = make_curve(asked, [point(30, 0.55, 0.4, 0.7), point(60, 0.7, 0.6, 0.8)])

    assert chart is not None and chart.random_end is not None
    assert [tick.words for tick in chart.rows] == ["50", "60", "70", "80", "90"]  # 55 % is inside
    assert chart.random[0].x == LEFT  # 30 labels are the fewest, 80 the most
    assert chart.dots[0].x == pytest.approx(LEFT + 0.2 * (WIDTH - LEFT - RIGHT))
    assert chart.random[1].y == chart.dots[0].y  # both 70 %
    assert chart.random_end.words == "70.0 % random"
    assert chart.random[0].words == "30 random labels: 55.0 (40.0–70.0) %"
    assert chart.summary.endswith("60 random labels alone give 70.0 (60.0–80.0) %.")
    alone = make_curve(asked)
    assert alone is not None and (alone.random, alone.random_line, alone.random_end) == ((), "", None)


def test_one_point_stands_in_the_middle_and_none_is_no_chart():
    chart = make_curve([point(40, 1.0, 0.96, 1.0)])

    assert chart is not None
    assert chart.dots[0].x == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) / 2)
    assert chart.rows[-1].words == "100"
    assert make_curve([]) is None


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.495, 0.505), (0.03, 0.97), (0.99, 1.0), (0.0, 0.01)])
def test_every_interval_lies_inside_the_grid(low: float, high: float):
    chart = make_curve([point(10, (low + high) / 2, low, high)])

    assert chart is not None
    values = [float(tick.words) for tick in chart.rows]
    assert values[0] <= 100 * low and 100 * high <= values[-1] <= 100
