"""Certified errors on ranges: they enclose what dense sampling finds, and bounds lie above them."""

import math

import numpy as np
import pytest
from flint import acb, arb
from hypothesis import given, settings
from hypothesis import strategies as st

from lockproofs import balls
from lockproofs import enclosures as e
from lockref.autodiff import ops
from lockref.locks.bases import CHEBYSHEV
from lockref.locks.taylor_series import coefficients, radius, remainder_bound

ACTIVATIONS = ("silu", "gelu_erf", "gelu_tanh", "tanh", "sigmoid")
everywhere = pytest.mark.parametrize("activation", ACTIVATIONS)
RANGES = ((-1.0, 2.0), (-6.0, 7.5), (3.0, 3.5))


def sampled_error(activation, low, high, evaluate):
    z = np.linspace(low, high, 4001)
    return float(np.max(np.abs(ops.ALL[activation](z) - evaluate(z))))


@everywhere
@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("order", [0, 3, 9])
def test_the_greatest_error_is_what_sampling_finds(activation, low, high, order):
    t = low + 0.4 * (high - low)
    a = coefficients(activation, t, order)
    chebyshev = CHEBYSHEV.coefficients(activation, (low + high) / 2, (high - low) / 2, order)
    cases = (
        (e.taylor_polynomial(activation, t, order), lambda z: np.polynomial.polynomial.polyval(z - t, a)),
        (
            e.chebyshev_interpolant(activation, low, high, order),
            lambda z: np.polynomial.chebyshev.chebval((2 * z - low - high) / (high - low), chebyshev),
        ),
    )
    for polynomial, evaluate in cases:
        least, most = e.greatest_error(activation, polynomial, low, high)
        found = sampled_error(activation, low, high, evaluate)
        room = 1e-12 * (1 + np.max(np.abs(evaluate(np.linspace(low, high, 50)))))  # round-off of the float evaluation
        assert least <= most <= 1.03 * least + 1e-60
        assert found <= most + room
        assert found >= 0.99 * least - room, "4,001 points see the greatest error to a percent"


@everywhere
def test_a_wrong_polynomial_is_seen(activation):
    right = e.taylor_polynomial(activation, 0.5, 12)
    most = e.greatest_error(activation, right, 0.0, 1.0)[1]
    assert e.greatest_error(activation, lambda z: right(z) * 1.001, 0.0, 1.0)[0] > 10 * most
    assert e.greatest_error(activation, e.taylor_polynomial(activation, 0.5, 9), 0.0, 1.0)[0] > most


@settings(max_examples=25)
@given(
    activation=st.sampled_from(("silu", "sigmoid", "tanh", "gelu_erf")),
    low=st.floats(-6, 5),
    width=st.floats(0.1, 8),
    share=st.floats(0, 1),
    order=st.integers(1, 12),
)
def test_closed_bounds_contain_the_certified_error(activation, low, width, share, order):
    t, high = low + share * width, low + width
    reach = max(t - low, high - t)
    _, most = e.greatest_error(activation, e.taylor_polynomial(activation, t, order), low, high)
    assert most <= 1.03 * float(remainder_bound(activation, t, reach, order)) * (1 + 1e-12)
    # 65 points see Lagrange's bound to a few percent unless the derivative wiggles; 12 orders on 8 units do not
    assert most <= 1.25 * e.lagrange_at_least(activation, t, low, high, order) + 1e-60


def test_a_layer_stays_below_its_bound_and_attains_a_good_part_of_it():
    rng = np.random.default_rng(0)
    low, high = rng.uniform(-5, 0, 4), rng.uniform(0.5, 5, 4)
    weight, factor = rng.standard_normal((3, 4)), rng.uniform(0.5, 2, 4)
    bounds = e.layer_error_bounds("silu", low, high, 6, factor, weight)
    center = (low + high) / 2
    a = coefficients("silu", center, 6)

    def error(z):
        return np.polynomial.polynomial.polyval(z - center, a, tensor=False) - ops.silu(z)

    inside = error(rng.uniform(low, high, (500, 4))) * rng.uniform(-factor, factor, (500, 4))
    assert np.all(np.abs(inside @ weight.T) <= bounds)
    ends = np.maximum(np.abs(error(low)), np.abs(error(high)))
    assert np.all(np.abs(weight) @ (ends * factor) >= 0.9 * bounds)


@everywhere
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_chebyshev_bounds_contain_the_error_and_fall_geometrically(activation, low, high):
    orders = (2, 6, 12)
    bounds = e.chebyshev_bounds(activation, low, high, orders)
    for order, bound in zip(orders, bounds, strict=True):
        assert (
            e.greatest_error(activation, e.chebyshev_interpolant(activation, low, high, order), low, high)[1] <= bound
        )
    assert bounds[2] < bounds[1] < bounds[0]


@everywhere
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_no_pole_within_the_bernstein_ellipse_and_one_on_it(activation, low, high):
    rho = float(e.bernstein_radius(activation, low, high))
    if activation == "gelu_erf":
        assert rho == math.inf
        return
    center, half = (low + high) / 2, (high - low) / 2
    turns = np.linspace(0, np.pi, 400)
    w = rho * np.exp(1j * turns)
    distances = [abs(complex(p) - (center + half * (w + 1 / w) / 2)) for p in poles_near(activation, rho * half + 9)]
    assert min(np.min(d) for d in distances) <= 0.02 * half * rho
    # a thousandth inside, the bound exists; a thousandth outside, it is refused
    assert float(e.ellipse_bound(activation, low, high, arb(1 + 0.999 * (rho - 1)))) < math.inf
    with pytest.raises(ValueError, match="no ellipse"):
        e.ellipse_bound(activation, low, high, arb(1.001 * rho))


def poles_near(activation, reach):
    return [p for q in balls.poles(activation, arb(reach)) for p in (q, acb(q.real, -q.imag))]


def test_the_ellipse_of_silu_by_hand():
    # on [−1, 1] a pole at iπ lies on the ellipse of ρ = π + √(π² + 1)
    assert float(e.bernstein_radius("silu", -1, 1)) == pytest.approx(math.pi + math.hypot(math.pi, 1), rel=1e-15)
    assert float(balls.pole_distance("silu", 3.0)) == pytest.approx(float(radius("silu", 3.0)), rel=1e-15)


@pytest.mark.parametrize("z", [-2.9, 0.3, 4.0, 9.0])
@pytest.mark.parametrize("order", [2, 7])
def test_errors_of_silu_are_sums_over_its_poles(z, order):
    """R_N(z) = Σ_p p/(z − p) · ω(z)/ω(p), ω the monic polynomial of the nodes: inside the range and outside."""
    low, high = -3.0, 5.0
    poles = 1j * np.pi * (2 * np.arange(4000) + 1)

    def total(omega):
        return 2 * np.sum((poles / (z - poles) * omega(z) / omega(poles)).real)

    def t(y):
        x = (y - 1 + 0j) / 4
        w = x + np.sqrt(x - 1) * np.sqrt(x + 1)
        return (w ** (order + 1) + w ** -(order + 1)) / 2

    cases = (
        (e.taylor_polynomial("silu", 1.0, order), lambda y: (y - 1.0 + 0j) ** (order + 1)),
        (e.chebyshev_interpolant("silu", low, high, order), t),
    )
    for polynomial, omega in cases:
        with balls.working():
            want = float(balls.formula("silu")(arb(z)) - polynomial(arb(z)))
        # poles beyond the 4,000th add at most Σ (|z − t|/π(2k+1))³ < (9/π)³ / (4 · 4000²)
        assert total(omega) == pytest.approx(want, abs=1e-6 + 1e-9 * abs(want))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: e.bernstein_radius("silu", 1.0, 1.0), r"range is \[1, 1\]: low must be below high"),
        (lambda: e.bernstein_radius("relu", 0.0, 1.0), "no activation 'relu'"),
        (lambda: e.chebyshev_bounds("silu", 0.0, 1.0, []), "give at least one"),
        (lambda: e.ellipse_bound("silu", 0.0, 1.0, arb(1)), "no ellipse of ρ = 1"),
    ],
)
def test_bad_input_gets_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
