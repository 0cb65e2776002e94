"""Certified enclosures: they contain what mpmath and sampling find, and they are not much larger."""

import math
from itertools import pairwise

import mpmath as mp
import pytest
from flint import arb, ctx, fmpq
from hypothesis import given
from hypothesis import strategies as st

from lockproofs import balls
from lockref.locks import taylor_series as taylor

ACTIVATIONS = ("silu", "gelu_erf", "gelu_tanh", "tanh", "sigmoid")
REFERENCE = {
    "silu": lambda x: x / (1 + mp.exp(-x)),
    "gelu_erf": lambda x: x * (1 + mp.erf(x / mp.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))),
    "tanh": mp.tanh,
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
}
everywhere = pytest.mark.parametrize("activation", ACTIVATIONS)
ORDERS = (0, 3, 8, 17)


def room(activation, t):
    """The radius of convergence, and 4 where there is none."""
    return min(float(taylor.radius(activation, t)), 4.0)


def contains(ball, x):
    """Whether the ball contains an mpmath number, itself known to 45 decimals."""
    with ctx.workprec(400):
        return ball.overlaps(arb(mp.nstr(x, 70), "1e-45"))


@everywhere
@given(t=st.floats(-6, 6), share=st.floats(-2, 2))
def test_errors_enclose_what_mpmath_computes(activation, t, share):
    z = t + share * room(activation, t)
    with mp.workdps(110):
        coefficients = [mp.mpf(c.str(75, radius=False)) for c in balls.coefficients(activation, t, max(ORDERS))]
        step = mp.mpf(z) - mp.mpf(t)
        for order, ball in zip(ORDERS, balls.errors(activation, t, ORDERS, z), strict=True):
            terms = [c * step**n for n, c in enumerate(coefficients[: order + 1])]
            assert contains(ball, REFERENCE[activation](mp.mpf(z)) - mp.fsum(terms))
            assert not contains(ball, REFERENCE[activation](mp.mpf(z)) - mp.fsum(terms) + mp.mpf("1e-30"))


@everywhere
def test_coefficients_enclose_those_of_the_reference_recurrence(activation):
    for t in (0.0, 1.3, -4.2):
        want, got = taylor.coefficients(activation, t, 30), balls.coefficients(activation, t, 30)
        assert len(got) == 31
        scale = max(abs(float(c)) * room(activation, t) ** n for n, c in enumerate(got))
        for n, (c, x) in enumerate(zip(got, want, strict=True)):
            # 31² roundings and those of an exponential of at most 20, at the geometric size
            assert abs(float(c) - x) <= 1000 * 2.3e-16 * scale * room(activation, t) ** -n


@everywhere
@given(t=st.floats(-6, 6), share=st.floats(0, 0.9), where=st.floats(-1, 1))
def test_a_bound_covers_every_point_of_its_range_and_is_not_idle(activation, t, share, where):
    reach = share * room(activation, t)
    bounds = balls.sup_bounds(activation, t, ORDERS, reach)
    for bound, error in zip(bounds, balls.errors(activation, t, ORDERS, t + where * reach), strict=True):
        # t + where · reach is rounded to a double, which may push it out of the range by one unit
        assert balls.lower(abs(error)) <= bound * (1 + 1e-12) + 1e-15
    assert all(b <= a for a, b in pairwise(bounds))


def test_a_bound_of_a_lower_order_or_a_shorter_range_is_caught():
    for t in (0.0, 2.5):
        reach = 0.8 * room("silu", t)
        errors = [
            max(balls.lower(abs(e)) for e in ends)
            for ends in zip(*(balls.errors("silu", t, (8, 16), t + s * reach) for s in (-1, 1)), strict=True)
        ]
        # terms that fall as 0.8ⁿ: sums of absolute values exceed alternating ones by (1 + 0.8) / (1 − 0.8)
        right = balls.sup_bounds("silu", t, (8, 16), reach)
        assert all(e <= b <= 9 * e for e, b in zip(errors, right, strict=True))
        assert errors[0] > balls.sup_bounds("silu", t, (16,), reach)[0]
        assert errors[1] > balls.sup_bounds("silu", t, (16,), 0.9 * reach)[0]


@everywhere
def test_pole_distance_encloses_the_radius(activation):
    for t in (0, 0.5, -3.0, 9.0):
        distance, radius = balls.pole_distance(activation, t), float(taylor.radius(activation, t))
        if activation == "gelu_erf":
            assert not distance.is_finite() and radius == math.inf
        else:
            assert balls.lower(distance) * (1 - 1e-7) <= radius <= balls.upper(distance) * (1 + 1e-7)


@everywhere
@given(t=st.floats(-5, 5), share=st.floats(0.05, 0.95), radial=st.floats(0, 1), angle=st.floats(-math.pi, math.pi))
def test_a_circle_bounds_its_disc(activation, t, share, radial, angle):
    radius = arb(share * room(activation, t))
    bound = float(balls.circle_bound(activation, t, radius))
    point = mp.mpc(t) + mp.mpf(float(radius)) * radial * mp.expj(angle)
    inside = abs(REFERENCE[activation](point))
    assert inside <= bound * (1 + 1e-12)
    sampled = [mp.mpc(t) + mp.mpf(float(radius)) * mp.expj(mp.pi * j / 200) for j in range(201)]
    greatest = max(abs(REFERENCE[activation](x)) for x in sampled)
    assert bound <= 2.2 * greatest  # at most twice too large, and 200 samples see nine tenths of it


def test_upper_and_lower_bracket_a_ball():
    third = arb(fmpq(1, 3))
    assert arb(balls.lower(third)) < third < arb(balls.upper(third))
    assert balls.upper(arb(1)) > 1 > balls.lower(arb(1))


def test_the_library_is_left_as_it_was():
    before = ctx.prec, ctx.cap
    balls.sup_bounds("silu", 1.0, (4,), 2.0)
    with pytest.raises(ValueError, match="pole"):
        balls.circle_bound("silu", 0, arb(4))
    assert (ctx.prec, ctx.cap) == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: balls.coefficients("relu", 0, 3), "no activation 'relu': choose one of silu"),
        (lambda: balls.pole_distance("relu", 0), "no activation 'relu'"),
        (lambda: balls.coefficients("silu", 0, -1), "order is -1; it must be at least 0"),
        (lambda: balls.errors("silu", 0, (), 1), "give at least one"),
        (lambda: balls.sup_bounds("silu", 0, (), 1), "give at least one"),
        (lambda: balls.errors("silu", 0, (2, -1), 1), "order is -1; it must be at least 0"),
        (lambda: balls.sup_bounds("silu", 0, (-1,), 1), "order is -1; it must be at least 0"),
        (lambda: balls.sup_bounds("silu", 0, (2,), -1), "reach is -1"),
        (lambda: balls.sup_bounds("silu", 0, (2,), math.nan), "reach is nan"),
        (lambda: balls.sup_bounds("silu", 0, (2,), 3.2), "silu about 0: the reach 3.2 is not within .* 3.14159"),
        (lambda: balls.sup_bounds("tanh", 1, (2,), arb.pi()), "tanh about 1: the reach 3.14159 is not within"),
        (lambda: balls.circle_bound("sigmoid", 0, arb.pi()), "sigmoid: a pole lies within 3.14159 of 0"),
    ],
)
def test_bad_input_gets_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
