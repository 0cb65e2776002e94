"""A plot's ticks, lines and markers lie where its data say, whatever the data."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockproofs.claim import Curve, Plot
from lockproofs.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axis, draw, number

VALUES = st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20)
POSITIVE = st.lists(st.floats(-300, 300).map(lambda e: 10.0**e), min_size=1, max_size=20)
EITHER = st.one_of(st.tuples(VALUES, st.just(False)), st.tuples(POSITIVE, st.booleans()))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9, "9"),
        (1234, "1,234"),
        (100000, "100,000"),
        (0.5, "0.5"),
        (-0.031249, "−0.03125"),
        (3.14159265, "3.142"),
        (9999.96, "10,000"),
        (2.3e-15, "2.3×10⁻¹⁵"),
        (-4.2311e12, "−4.231×10¹²"),
        (999999.9, "1×10⁶"),
        (math.nan, "–"),
        (-math.inf, "–"),
        (None, "–"),
    ],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


@given(EITHER)
def test_an_axis_holds_its_values_and_has_a_few_ticks(case):
    values, log = case
    got = axis(values, log)
    for value in values:
        assert 0 <= got.place(value) <= 1, f"{value} lies at {got.place(value)}"
    places = [at for at, _ in got.ticks]
    assert 2 <= len(places) <= 9, got.ticks
    assert places == sorted(places)
    assert all(-1e-9 <= at <= 1 + 1e-9 for at in places)
    labels = [label for _, label in got.ticks]
    assert len(set(labels)) == len(labels), f"labels repeat: {labels}"


@given(EITHER)
def test_an_axis_keeps_the_order(case):
    values, log = case
    got = axis(values, log)
    places = [got.place(value) for value in sorted(values)]
    assert places == sorted(places)


def plot(curves, **more):
    named = [Curve(name=str(i), x=x, y=y) for i, (x, y) in enumerate(curves)]
    return Plot(title="t", x_label="x", y_label="y", curves=named, **more)


def test_corners_lie_at_the_margins_of_the_frame():
    (line,) = draw(plot([([0.0, 100.0], [1.0, 3.0])])).lines
    (x0, y0), (x1, y1) = line.points
    pad_x, pad_y = (WIDTH - LEFT - RIGHT) * 0.04 / 1.08, (HEIGHT - TOP - BOTTOM) * 0.04 / 1.08
    assert (x0, x1) == pytest.approx((LEFT + pad_x, WIDTH - RIGHT - pad_x), abs=0.06)
    assert (y0, y1) == pytest.approx((HEIGHT - BOTTOM - pad_y, TOP + pad_y), abs=0.06)
    assert line.path == f"M{x0:g},{y0:g}L{x1:g},{y1:g}"


def test_gaps_interrupt_a_line():
    xs = [1.0, 2.0, 3.0, 4.0, 5.0]
    for y_log, missing in ((False, None), (True, 0.0), (True, -1.0)):
        (line,) = draw(plot([(xs, [1.0, 2.0, missing, 4.0, 5.0])], y_log=y_log)).lines
        assert "".join(re.findall("[ML]", line.path)) == "MLML"
        assert len(line.points) == 4


@pytest.mark.parametrize("curves", [[], [([], [])], [([1.0], [None])], [([0.0], [0.0])]])
@pytest.mark.parametrize("log", [False, True])
def test_little_data_is_drawn_all_the_same(curves, log):
    got = draw(plot(curves, x_log=log, y_log=log))
    assert len(got.lines) == len(curves)
    assert len(got.x_ticks) >= 2 and len(got.y_ticks) >= 2


@pytest.mark.parametrize("count", [6, 36])
def test_curves_differ_in_more_than_color(count):
    lines = draw(plot([([0.0, 1.0], [0.0, float(k)]) for k in range(count)])).lines
    assert len({line.marker for line in lines[:6]}) == len({line.dash for line in lines[:6]}) == 6
    assert len({(line.style, line.marker, line.dash) for line in lines}) == count
