"""Taylor coefficients, radii and released layers, against mpmath and against the layer they replace."""

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.autodiff import ops
from lockref.locks import taylor_series as taylor

EPS = float(np.finfo(np.float64).eps)
POINTS = (0.0, 0.7, -3.1, 8.0, -6.5)
ORDER = 40
REFERENCE = {
    "silu": lambda x: x / (1 + mp.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "tanh": mp.tanh,
    "gelu_erf": lambda x: x * (1 + mp.erf(x / mp.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))),
}
# Each series starts from one exponential, of this exponent; rounding it once costs eps × exponent.
EXPONENT = {
    "silu": np.abs,
    "sigmoid": np.abs,
    "tanh": lambda t: np.abs(2 * t),
    "gelu_erf": lambda t: t**2 / 2,
    "gelu_tanh": lambda t: np.abs(2 * np.sqrt(2 / np.pi) * (t + 0.044715 * t**3)),
}
everywhere = pytest.mark.parametrize("activation", REFERENCE)


def envelope(activation, t, coefficients):
    """The geometric size of each coefficient: max over k ≤ n of |a_k| ρᵏ, times ρ⁻ⁿ."""
    n = np.arange(len(coefficients)).reshape(-1, *[1] * (coefficients.ndim - 1))
    rho = np.minimum(taylor.radius(activation, t), 4.0)  # an entire function has no natural one
    return np.maximum.accumulate(np.abs(coefficients) * rho**n) * rho**-n


def worst_error(activation, t, got, want):
    """Error over tolerance. Step n adds up n products of coefficients that carry errors themselves:
    (n + 1)² roundings, and those of the first exponential, times four operations in each, at the
    geometric size of the coefficient."""
    n = np.arange(len(want)).reshape(-1, *[1] * (want.ndim - 1))
    roundings = (n + 1) ** 2 + EXPONENT[activation](np.asarray(t))
    tolerance = 4 * EPS * roundings * envelope(activation, t, want)
    return np.max(np.abs(got - want) / np.maximum(tolerance, np.finfo(np.float64).tiny))


@pytest.fixture(scope="module")
def reference():
    """Coefficients by mpmath's numerical differentiation, to 25 digits: (activation) -> (41, points)."""

    def compute(activation):
        with mp.workdps(25):
            columns = [[float(c) for c in mp.taylor(REFERENCE[activation], t, ORDER)] for t in POINTS]
        return np.array(columns).T

    return compute


@everywhere
def test_coefficients_equal_mpmath_to_order_40(reference, activation):
    want, got = reference(activation), taylor.coefficients(activation, POINTS, ORDER)
    ratio = worst_error(activation, POINTS, got, want)
    assert ratio <= 1, f"{activation}: {ratio:.2g} times the tolerance of worst_error"
    for n in (0, 1, 2, 3, 17, ORDER):  # the comparison sees one coefficient that is off by a millionth
        planted = got.copy()
        planted[n] += 1e-6 * envelope(activation, POINTS, want)[n]
        assert worst_error(activation, POINTS, planted, want) > 1


@everywhere
def test_lower_orders_are_the_beginning_of_higher_ones(activation):
    t = np.linspace(-5, 5, 6).reshape(2, 3)
    full = taylor.coefficients(activation, t, 12)
    for order in (0, 1, 2, 5):
        assert np.array_equal(taylor.coefficients(activation, t, order), full[: order + 1])


@everywhere
@given(t=st.floats(-8, 8), share=st.floats(-0.25, 0.25))
def test_the_series_sums_to_the_activation_well_within_the_radius(activation, t, share):
    step = share * min(float(taylor.radius(activation, t)), 4.0)
    (got,) = taylor.partial_sums(activation, [t + step], t, [ORDER])
    # 41 terms, geometric with ratio 1/4 at most, so the sum is twice the envelope's first at most; the
    # remainder is below 4^-41 of it
    size = envelope(activation, t, taylor.coefficients(activation, t, ORDER)) * np.abs(step) ** np.arange(ORDER + 1)
    tolerance = 4 * EPS * (ORDER + 1) * size.sum() + 1e-22
    want = ops.ALL[activation](np.array([t + step]))
    assert abs(got[0] - want[0]) <= tolerance + 4 * EPS * (1 + abs(t + step))


def test_radius_is_the_distance_to_the_nearest_pole():
    t = np.array([0.0, -3.0, 40.0])
    assert np.allclose(taylor.radius("silu", t), np.sqrt(t**2 + np.pi**2), rtol=4 * EPS, atol=0)
    assert np.allclose(taylor.radius("sigmoid", t), taylor.radius("silu", t), rtol=0, atol=0)
    assert np.allclose(taylor.radius("tanh", t), np.sqrt(t**2 + np.pi**2 / 4), rtol=4 * EPS, atol=0)
    assert np.all(np.isinf(taylor.radius("gelu_erf", t)))
    # cosh(√(2/π)(x + 0.044715 x³)) vanishes at the poles: Newton's method from many starts, none nearer
    for point in (0.0, 1.5, 6.0, -9.0):
        claimed = float(taylor.radius("gelu_tanh", point))
        found = [abs(root - point) for root in gelu_tanh_poles(point, claimed)]
        assert min(found) == pytest.approx(claimed, rel=1e-9)


def gelu_tanh_poles(point, size):
    starts = point + size * np.linspace(0.5, 1.5, 9)[:, None] * np.exp(1j * np.linspace(0.02, np.pi - 0.02, 60))
    gain, cube = np.sqrt(2 / np.pi), 0.044715
    z = starts.reshape(-1)
    for _ in range(200):  # on w(z) − iπ(k + ½) with the nearest k: no exponentials, no overflow
        w = gain * (z + cube * z**3)
        target = 1j * np.pi * (np.floor(w.imag / np.pi) + 0.5)
        z = z - (w - target) / (gain * (1 + 3 * cube * z**2))
    w = gain * (z + cube * z**3)
    return z[np.abs(w.real) + np.abs(np.cos(w.imag)) < 1e-9]


BOUNDED = ("silu", "sigmoid", "tanh", "gelu_erf")


def error_in_high_precision(activation, t, z, order):
    with mp.workdps(60):
        step = mp.mpf(z) - mp.mpf(t)
        terms = [c * step**n for n, c in enumerate(mp.taylor(REFERENCE[activation], mp.mpf(t), order))]
        return float(abs(REFERENCE[activation](mp.mpf(z)) - mp.fsum(terms)))


@pytest.mark.parametrize("activation", BOUNDED)
@pytest.mark.parametrize("order", [1, 2, 5, 12])
def test_the_closed_bound_contains_the_error_inside_the_radius_and_outside(activation, order):
    for t, reach in ((0.0, 0.5), (-1.3, 2.5), (2.0, 6.0)):
        bound = float(taylor.remainder_bound(activation, t, reach, order))
        errors = [error_in_high_precision(activation, t, t + s * reach, order) for s in (-1, -0.4, 0.7, 1)]
        assert max(errors) <= bound
        assert bound <= 1e4 * max(errors) + 1e-12, "a bound that says nothing"
        # a power of reach too many, where reach < 1: below the error
    lower = taylor.remainder_bound(activation, 0.0, 0.05, order + 2)
    assert error_in_high_precision(activation, 0.0, 0.05, order) > lower


def test_a_pole_beyond_those_summed_still_counts():
    near = taylor.remainder_bound("silu", 0.0, 1.0, 1)
    # Σ 2/(π²(2k+1)²) over k ≥ 0 is 1/4
    assert near == pytest.approx(0.25, rel=1e-12)


ONE = np.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: taylor.coefficients("silu", 0.0, -1), "order is -1; it must be at least 0"),
        (lambda: taylor.coefficients("swish", 0.0, 2), "no activation 'swish': choose one of silu, "),
        (lambda: taylor.coefficients("silu", [0.0, np.nan], 2), r"expansion point of shape \(2,\) .*not finite"),
        (lambda: taylor.radius("relu", 0.0), "no activation 'relu'"),
        (lambda: taylor.partial_sums("silu", ONE, 0.0, [3, 1]), r"orders \[3, 1\]: .* increasing"),
        (lambda: taylor.partial_sums("silu", ONE, 0.0, [-1, 1]), r"orders \[-1, 1\]: .* from 0 on"),
        (lambda: taylor.partial_sums("silu", ONE, 0.0, []), r"orders \[\]: give at least one"),
        (lambda: taylor.remainder_bound("gelu_tanh", 0.0, 1.0, 4), "no closed bound for gelu_tanh: choose one of silu"),
        (lambda: taylor.remainder_bound("silu", 0.0, 1.0, 0), "order is 0; the bound needs at least 1"),
        (lambda: taylor.remainder_bound("silu", 0.0, -1.0, 3), "reach -1 is negative"),
        (lambda: taylor.remainder_bound("silu", 0.0, np.inf, 3), "reach of shape .* not finite"),
    ],
)
def test_bad_input_gets_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
