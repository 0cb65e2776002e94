"""The feed-forward lock in three bases, on one layer and on a whole model, against what it replaces."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.autodiff import grad, ops
from lockref.locks import taylor, taylor_model
from lockref.locks.bases import BASES, CHEBYSHEV, HERMITE, TAYLOR, Observed, observed
from lockref.locks.taylor_series import coefficients, partial_sums, radius
from lockref.models import qwen3

EPS = float(np.finfo(np.float64).eps)
everywhere = pytest.mark.parametrize("basis", BASES.values(), ids=list(BASES))


def swiglu_case(seed, tokens=11, hidden=7, width=5):
    rng = np.random.default_rng(seed)
    z, u = rng.standard_normal((2, 3, tokens, hidden))
    return rng.standard_normal((width, hidden)), z, u


def test_a_layer_within_the_radius_is_the_swiglu_it_replaces():
    weight, z, u = swiglu_case(0)
    seen = observed(z)
    layer = taylor.reparameterize(weight, "silu", seen, 60)
    share = float(np.max((seen.high - seen.low) / 2 / radius("silu", seen.center)))
    want = ops.swiglu(z, u) @ weight.T
    # Cauchy on a circle 2 % inside the poles, where |silu| < 400; then round-off of 61 terms of order 1
    tolerance = (400 * (share / 0.98) ** 61 / (1 - share / 0.98) + 61**2 * EPS) * np.abs(u) @ np.abs(weight.T)
    assert layer.arrays.shape == (61, 5, 7) and layer.order == 60
    assert np.all(np.abs(layer(z, u) - want) <= tolerance)
    swapped = taylor.SeriesLayer(layer.arrays[[0, 2, 1, *range(3, 61)]], layer.center, layer.scale)
    assert not np.all(np.abs(swapped(z, u) - want) <= tolerance)


def test_released_arrays_are_the_weight_times_the_derivatives():
    weight, z, u = swiglu_case(1)
    layer = taylor.reparameterize(weight, "gelu_erf", observed(z), 6)
    derivatives = coefficients("gelu_erf", layer.center, 6)
    for n in range(7):
        assert np.array_equal(layer.arrays[n], weight @ np.diag(derivatives[n]))
    for order, total in zip((2, 6), partial_sums("gelu_erf", z, layer.center, (2, 6)), strict=True):
        bound = 2 * (order + 2 + 7) * EPS * np.sum(np.abs(layer.arrays), axis=(0, 2)).max() * np.abs(u).max()
        bound *= max(1.0, float(np.abs(z - layer.center).max())) ** order
        assert np.max(np.abs(layer.truncated(order)(z, u) - (total * u) @ weight.T)) <= bound


@everywhere
def test_a_plain_layer_carries_its_bias_into_the_expansion_point(basis):
    weight, z, _ = swiglu_case(2)
    bias = np.linspace(-2, 2, 7)
    order = 90 if basis is HERMITE else 50
    layer = taylor.reparameterize(weight, "gelu_erf", observed(z), order, basis, bias=bias)
    error = np.max(np.abs(layer(z) - ops.gelu_erf(z + bias) @ weight.T))
    # Taylor: |aₙ| ≤ 1/√n! beyond n = 2, reach below 3: the remainder is below 3^51/√51! < 1e-8; an entire
    # function's Chebyshev interpolant is nearer still on the range, its Hermite interpolant takes longer
    assert error <= 1e-8 * np.abs(weight).sum()
    without = taylor.reparameterize(weight, "gelu_erf", observed(z), order, basis)
    assert np.max(np.abs(without(z) - ops.gelu_erf(z + bias) @ weight.T)) > 0.1


@pytest.mark.parametrize("basis", [CHEBYSHEV, HERMITE], ids=["chebyshev", "hermite"])
@pytest.mark.parametrize("order", [0, 1, 4, 9])
def test_coefficients_interpolate_at_the_nodes(basis, order):
    point, scale = np.array([0.4, -2.0]), np.array([3.0, 0.5])
    c = basis.coefficients("silu", point, scale, order)
    x, _ = basis.nodes(order + 1)
    got = sum(cn * phi[:, None] for cn, phi in zip(c, basis.polynomials(x), strict=False))
    want = ops.silu(point + x[:, None] * scale)
    # sums of order + 1 products, twice; Hermite polynomials at their nodes grow as exp(x²/4)
    tolerance = 8 * (order + 1) ** 2 * EPS * np.exp(np.max(x * x) / 4) * np.max(np.abs(want))
    assert np.max(np.abs(got - want)) <= tolerance
    assert np.max(np.abs(got - want[::-1])) > tolerance or order == 0


@everywhere
@given(
    x=st.floats(-1, 1),
    polynomial=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
)
def test_polynomials_are_those_of_numpy_and_have_parity(basis, x, polynomial):
    evaluate = {
        "taylor": np.polynomial.polynomial.polyval,
        "chebyshev": np.polynomial.chebyshev.chebval,
        "hermite": np.polynomial.hermite_e.hermeval,
    }[basis.name]
    norms = [math.sqrt(math.factorial(n)) if basis is HERMITE else 1.0 for n in range(4)]
    first = [phi for phi, _ in zip(basis.polynomials(x), range(4), strict=False)]
    got = sum(c * phi for c, phi in zip(polynomial, first, strict=True))
    assert got == pytest.approx(evaluate(x, [c / s for c, s in zip(polynomial, norms, strict=True)]), abs=1e-13)
    mirrored = [phi for phi, _ in zip(basis.polynomials(-x), range(4), strict=False)]
    assert mirrored == [(-1) ** n * phi for n, phi in enumerate(first)]


def test_chebyshev_converges_where_taylor_does_not():
    rng = np.random.default_rng(3)
    z = rng.uniform(-8, 8, (400, 3))
    weight, seen = np.eye(3), observed(z)
    worst = {
        (basis.name, n): np.max(np.abs(taylor.reparameterize(weight, "silu", seen, n, basis)(z) - ops.silu(z)))
        for basis in (TAYLOR, CHEBYSHEV)
        for n in (8, 32)
    }
    assert worst["taylor", 32] > 1e3 * worst["taylor", 8] > 1
    assert worst["chebyshev", 32] < 1e-4 * worst["taylor", 8] and worst["chebyshev", 32] < 1e-5


@everywhere
def test_signs_change_the_arrays_and_nothing_else(basis):
    weight, z, u = swiglu_case(4)
    layer = taylor.reparameterize(weight, "silu", observed(z), 7, basis)
    gate, factor = np.array([1, -1, -1, 1, 1, -1, 1.0]), np.array([-1, 1, -1, 1, -1, -1, 1.0])
    flipped = layer.signed(gate, factor)
    assert np.array_equal(flipped(gate * z, factor * u), layer(z, u))  # signs round nothing
    assert not np.allclose(flipped(z, u), layer(z, u)) and not np.array_equal(flipped.arrays, layer.arrays)


@given(
    low=st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3),
    width=st.lists(st.floats(0, 1e3), min_size=3, max_size=3),
)
def test_the_default_center_is_the_midpoint_and_lies_in_the_range(low, width):
    low = np.array(low)
    seen = Observed(low, low + np.array(width), low, np.array(width))
    center = taylor.reparameterize(np.ones((2, 3)), "tanh", seen, 1).center
    assert np.all((seen.low <= center) & (center <= seen.high))
    assert np.allclose(center - seen.low, seen.high - center, rtol=0, atol=4 * EPS * 3e3)


def test_observed_is_per_unit_over_all_tokens():
    z = np.array([[[1.0, -2.0], [3.0, 0.0]], [[-1.0, 5.0], [0.0, 0.0]]])
    seen = observed(z)
    assert seen.low.tolist() == [-1.0, -2.0] and seen.high.tolist() == [3.0, 5.0]
    assert seen.mean.tolist() == [0.75, 0.75]
    assert np.allclose(seen.deviation**2, [35 / 16, 107 / 16], rtol=4 * EPS, atol=0)


@pytest.fixture(scope="module")
def model(tiny_qwen3):
    config, weights = tiny_qwen3()
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, config.vocab_size, (3, 9))
    return config, weights, tokens, taylor_model.observe_model(weights, tokens, config)


@everywhere
@pytest.mark.parametrize("signed", [False, True])
def test_a_locked_model_computes_the_original(model, basis, signed):
    config, weights, tokens, seen = model
    gentle = {k: 0.5 * w if k.endswith("gate_proj.weight") else w for k, w in weights.items()}
    seen = taylor_model.observe_model(gentle, tokens, config)
    signs = np.random.default_rng(6) if signed else None
    released = taylor_model.lock_model(gentle, config, seen, 24, basis, signs)
    assert not any(name.endswith("down_proj.weight") for name in released)
    want = qwen3.forward(gentle, tokens, config)
    got = qwen3.forward(released, tokens, config, taylor_model.block(basis))
    gap = np.max(np.abs(got - want))
    # inside the radius the error at order 8 would be thousands of times that at 24; a wrong unit is of order 1
    assert gap <= 1e-4
    short = taylor_model.lock_model(gentle, config, seen, 4, basis, signs)
    assert np.max(np.abs(qwen3.forward(short, tokens, config, taylor_model.block(basis)) - want)) > 10 * gap
    if signed:
        gates = [k for k in gentle if k.endswith(("gate_proj.weight", "up_proj.weight"))]
        assert all(not np.array_equal(released[k], gentle[k]) for k in gates)
        assert all(np.array_equal(np.abs(released[k]), np.abs(gentle[k])) for k in gates)


def test_a_locked_model_can_be_differentiated(model):
    config, weights, tokens, seen = model
    released = taylor_model.lock_model(weights, config, seen, 4)
    name = "model.layers.1.mlp.series.arrays"

    def loss(arrays):
        return qwen3.loss(released | {name: arrays}, tokens, config, taylor_model.block())

    direction = np.random.default_rng(7).standard_normal(released[name].shape)
    slope = np.sum(grad(loss)(released[name]) * direction)
    step = 1e-6
    secant = (loss(released[name] + step * direction) - loss(released[name] - step * direction)) / (2 * step)
    assert slope == pytest.approx(secant, rel=1e-5)


ONE = np.ones(3)
SEEN = Observed(-ONE, ONE, 0 * ONE, ONE)
W = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: observed(np.empty((0, 3))), r"shape \(0, 3\): expected \(…, m\), at least one row"),
        (lambda: observed([[np.inf]]), "pre-activations .* not finite"),
        (lambda: Observed(ONE, -ONE, ONE, ONE), "unit 0: low is above high"),
        (lambda: Observed(ONE, ONE, ONE, np.ones(2)), r"shapes .*expected \(m,\) each"),
        (lambda: Observed(ONE, ONE, ONE, np.nan * ONE), "deviation .* not finite"),
        (lambda: taylor.reparameterize(ONE, "silu", SEEN, 2), r"weight \(3,\).*expected \(d, m\)"),
        (lambda: taylor.reparameterize(np.ones((2, 4)), "silu", SEEN, 2), r"\(2, 4\), observed units \(3,\)"),
        (lambda: taylor.reparameterize(W, "silu", SEEN, 2, center=[0, 1.5, 0]), "unit 1: center 1.5 is outside"),
        (lambda: taylor.reparameterize(W, "silu", SEEN, 2, center=0.0), r"center has shape \(\)"),
        (lambda: taylor.reparameterize(W, "silu", SEEN, 2, bias=np.ones(2)), r"bias .*\(2,\)"),
        (lambda: taylor.reparameterize(W, "silu", SEEN, 2, bias=np.nan), "bias .* not finite"),
        (lambda: taylor.reparameterize(np.nan * W, "silu", SEEN, 2), "weight .* not finite"),
        (lambda: taylor.reparameterize(W * [1, 0, 1], "silu", SEEN, 2), "unit 1: its column of the weight is zero"),
        (lambda: taylor.reparameterize(W, "silu", SEEN, -2), "order is -2"),
        (lambda: taylor.reparameterize(W, "relu", SEEN, 2), "no activation 'relu'"),
        (lambda: taylor.reparameterize(W, "silu", SEEN, 3).truncated(4), "order 4 is past .* choose 0 to 3"),
        (lambda: CHEBYSHEV.coefficients("silu", 0.0, 0.0, 3), "scale 0: it must be positive"),
        (lambda: TAYLOR.coefficients("silu", 0.0, 100.0, 400), "past the coefficients that float64 can hold"),
        (lambda: CHEBYSHEV.coefficients("silu", 0.0, 1.0, -1), "order is -1"),
    ],
)
def test_bad_input_gets_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bad_models_get_one_clear_line(model):
    config, weights, _, seen = model
    with pytest.raises(ValueError, match="observations of 1 layers, the model has 2"):
        taylor_model.lock_model(weights, config, seen[:1], 3)
    name = "model.layers.1.mlp.down_proj.weight"
    dead = weights | {name: weights[name] * (np.arange(40) != 7)}
    with pytest.raises(ValueError, match="layer 1: unit 7: its column of the weight is zero"):
        taylor_model.lock_model(dead, config, seen, 3)
