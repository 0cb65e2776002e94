"""Both attacks on the feed-forward lock: they find what is there, and say what they cannot find."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from lockref.attacks import query, taylor_coefficients
from lockref.attacks.result import relative_error
from lockref.attacks.taylor_coefficients import recover, recover_model
from lockref.locks import taylor_model
from lockref.locks.bases import BASES, CHEBYSHEV, TAYLOR, Observed
from lockref.locks.taylor import reparameterize
from lockref.models import qwen3

EPS = float(np.finfo(np.float64).eps)
DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
everywhere = pytest.mark.parametrize("basis", BASES.values(), ids=list(BASES))


def plain_layer(activation, basis=TAYLOR, order=8, units=30, width=13, seed=0):
    """A layer with a bias that nobody is told, half of its units with the opposite sign."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((width, units)), rng.uniform(-1.5, 1.5, units)
    low, size = rng.uniform(-3, 1, units), rng.uniform(1, 4, units)
    seen = Observed(low, low + size, low + size / 3, size / 4)
    sign = np.where(np.arange(units) % 2, 1.0, -1.0)
    layer = reparameterize(weight, activation, seen, order, basis, bias=bias)
    return weight, layer.center + bias, sign, layer.signed(sign, np.ones(units))


@everywhere
@pytest.mark.parametrize("activation", ["silu", "gelu_erf", "gelu_tanh", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unknown_points_signs_and_weights_come_back(basis, activation, dtype):
    weight, points, sign, layer = plain_layer(activation, basis)
    arrays = layer.arrays.astype(DTYPES[dtype]).astype(np.float64)
    found = recover(arrays, activation, None, None, basis, layer.scale, dtype)
    # relative rounding of all arrays moves t by about as much over the curve's slope, and W by that
    unit = float(ml_dtypes.finfo(dtype).eps)
    assert np.array_equal(found.signs, sign)  # for sigmoid by order 0 alone: σ(−z) = 1 − σ(z)
    assert np.max(np.abs(found.points - points)) <= 300 * unit
    assert relative_error(found.weight, weight) <= 30 * unit
    assert np.max(found.misfit) <= 3


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("searched", [False, True])
def test_errors_stay_below_the_derived_bound(basis, dtype, searched):
    weight, points, sign, layer = plain_layer("silu", basis)
    arrays = layer.arrays.astype(DTYPES[dtype]).astype(np.float64)
    found = recover(arrays, "silu", None, None if searched else points * sign, basis, layer.scale, dtype)
    used = np.linalg.norm(found.weight - weight, axis=0) / np.linalg.norm(weight, axis=0) / found.bound
    assert np.max(used) <= 1, f"{basis.name}, {dtype}, t searched: {searched}: {np.max(used):.2g} of the bound"
    unit = float(ml_dtypes.finfo(dtype).eps) / 2
    assert searched or dtype == "float16" or np.all(found.bound <= 1.001 * unit + 25 * EPS), "the condition is 1"


def test_the_worst_rounding_needs_the_conditioning_of_the_ratio():
    """Orders moved by u as a whole, in every pattern of signs: near the bound, and past the round-off alone."""
    weight, points, sign, layer = plain_layer("silu")
    orders, unit = [0, 1, 2, 3, 4], 2.0**-8
    known, worst = recover(layer.arrays[orders], "silu", orders, points * sign, dtype="bfloat16").bound, 0.0
    for pattern in itertools.product((-unit, unit), repeat=len(orders)):
        moved = layer.arrays[orders] * (1 + np.array(pattern))[:, None, None]
        found = recover(moved, "silu", orders, dtype="bfloat16")
        error = np.linalg.norm(found.weight - weight, axis=0) / np.linalg.norm(weight, axis=0)
        assert np.all(error <= found.bound * (1 + 16 * unit)), "past first order in u"
        worst = np.maximum(worst, error)
    assert np.all(worst > 0.5 * found.bound), "the bound is near"
    assert np.any(worst > 1.05 * known), "round-off alone is no bound"


@pytest.mark.parametrize("orders", [[1, 2, 3], [1, 3, 4, 6], [2, 3, 4, 5, 6, 7, 8]])
def test_order_zero_is_not_needed(orders):
    weight, points, sign, layer = plain_layer("silu")
    found = recover(layer.arrays[orders], "silu", orders)
    assert relative_error(found.weight, weight) <= 1e4 * EPS
    if 1 in orders:
        assert np.array_equal(found.signs, sign) and np.max(np.abs(found.points - points)) <= 1e4 * EPS
    else:  # from order 2 on, −t with the other sign is the same curve
        assert np.max(np.abs(found.points * found.signs - points * sign)) <= 1e4 * EPS


def test_missing_last_orders_of_an_interpolant():
    weight, _, _, layer = plain_layer("silu", CHEBYSHEV)
    orders = [1, 2, 3, 4]
    found = recover(layer.arrays[orders], "silu", orders, None, CHEBYSHEV, layer.scale, last=8)
    assert relative_error(found.weight, weight) <= 1e4 * EPS
    wrong = recover(layer.arrays[orders], "silu", orders, None, CHEBYSHEV, layer.scale)
    assert np.max(wrong.misfit) > 1e6, "the wrong curve must not fit"


def test_a_wrong_activation_or_random_arrays_do_not_fit():
    _, _, _, layer = plain_layer("silu")
    assert np.median(recover(layer.arrays, "gelu_erf").misfit) > 1e6
    noise = np.random.default_rng(1).standard_normal(layer.arrays.shape)
    assert np.min(recover(noise, "silu", dtype="bfloat16").misfit) > 10


@everywhere
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_locked_checkpoint_comes_back(tiny_qwen3, basis, dtype):
    config, weights = tiny_qwen3(seed=2)
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (3, 9))
    seen = taylor_model.observe_model(weights, tokens, config)
    released = taylor_model.lock_model(weights, config, seen, 6, basis, np.random.default_rng(4))
    saved = {k: v.astype(DTYPES[dtype]).astype(np.float64) if k.endswith("arrays") else v for k, v in released.items()}
    result = recover_model(saved, config, basis, dtype)
    (guess,) = result.guesses
    assert set(guess) == set(weights) and result.residual_bits == 0
    for i in range(config.num_hidden_layers):
        gate, up, down = (
            f"model.layers.{i}.{name}" for name in (taylor_model.GATE, taylor_model.UP, taylor_model.DOWN)
        )
        assert np.array_equal(guess[gate], weights[gate])
        shared = np.sign(np.sum(guess[up] * weights[up], axis=1))  # the one freedom left
        assert relative_error(guess[down] * shared, weights[down]) <= 2 * float(ml_dtypes.finfo(dtype).eps)
    want, got = (qwen3.loss(w, tokens, config) for w in (weights, guess))
    assert got == pytest.approx(want, abs=10 * float(ml_dtypes.finfo(dtype).eps))


def test_dead_units_come_back_as_zeros(tiny_qwen3):
    config, weights = tiny_qwen3()
    seen = taylor_model.observe_model(weights, np.arange(9), config)
    released = taylor_model.lock_model(weights, config, seen, 4)
    name = "model.layers.0.mlp.series.arrays"
    released[name] = released[name] * (np.arange(40) != 7)
    (guess,) = recover_model(released, config).guesses
    down = guess["model.layers.0.mlp.down_proj.weight"]
    assert not np.any(down[:, 7]) and np.all(np.any(np.delete(down, 7, axis=1), axis=0))


ARRAYS = plain_layer("silu", units=4, width=3)[3].arrays


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recover(ARRAYS[0], "silu"), r"arrays of shape \(3, 4\): expected \(orders, d, m\)"),
        (lambda: recover(ARRAYS * np.nan, "silu"), "arrays .* not finite"),
        (lambda: recover(ARRAYS, "relu"), "no activation 'relu'"),
        (lambda: recover(ARRAYS, "silu", dtype="int8"), "no precision 'int8': choose float64"),
        (lambda: recover(ARRAYS, "silu", [1, 2]), r"orders \[1, 2\] for 9 arrays"),
        (lambda: recover(ARRAYS[:2], "silu", [1, 1]), r"orders \[1, 1\] for 2 arrays: .* once"),
        (lambda: recover(ARRAYS[:2], "silu"), "at least 3 are needed"),
        (lambda: recover(ARRAYS[:1], "silu", points=np.zeros(4)), "at least 2 are needed"),
        (lambda: recover(ARRAYS, "silu", last=5), "of a layer of order 5"),
        (lambda: recover(ARRAYS, "silu", points=np.zeros(3)), r"points have shape \(3,\), the units \(4,\)"),
        (lambda: recover(ARRAYS * [1, 1, 0, 1], "silu"), "unit 2: its coefficients are all zero; leave it out"),
        (lambda: query.least_squares(np.ones((4, 2)), np.ones((3, 1))), r"inputs \(4, 2\), outputs \(3, 1\)"),
        (lambda: query.least_squares(np.ones((2, 2)), np.ones((2, 1))), "2 samples for 2 unknowns"),
        (lambda: query.least_squares(np.ones((4, 2)), np.ones((4, 1))), "rank below 2"),
        (
            lambda: query.least_squares([[1.0, 0], [2, 0], [3, 0]], np.ones((3, 1))),
            "unknown 1: its inputs are all zero",
        ),
        (lambda: query.least_squares(np.full((4, 2), np.inf), np.ones((4, 1))), "inputs .* not finite"),
        (lambda: query.samples_needed(1.0, 0.0, 3), "spread 0"),
        (lambda: query.samples_needed(-1.0, 1.0, 3), "noise -1"),
        (lambda: query.samples_needed(float("inf"), 1.0, 3), "must be finite"),
        (lambda: query.samples_needed(1.0, 1.0, 3, 0.0), "failure 0"),
    ],
)
def test_bad_input_gets_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_lock_is_refused(tiny_qwen3):
    config, weights = tiny_qwen3()
    with pytest.raises(ValueError, match=r"layer 0 has no tensor .mlp\.series\.arrays.: this is no Taylor-locked"):
        recover_model(weights, config)


def test_least_squares_returns_exact_weights_and_honest_errors():
    rng = np.random.default_rng(8)
    weight = rng.standard_normal((5, 12))
    a = rng.standard_normal((400, 12)) * np.geomspace(1e-3, 1e3, 12)  # units of any size
    exact = query.least_squares(a, a @ weight.T)
    # 12 roundings in each output, spread over the columns by their size
    outputs = np.max(np.abs(a) @ np.abs(weight.T))
    assert np.max(np.abs(exact.weight - weight) * np.abs(a).max(axis=0)) <= 12 * 12 * EPS * outputs
    z = []
    for _ in range(40):
        noisy = query.least_squares(a, a @ weight.T + 0.3 * rng.standard_normal((400, 5)))
        z.append((noisy.weight - weight) / noisy.standard_error)
    # 2,400 standardized errors: their mean square is 1 ± 0.03, six deviations allowed
    assert abs(np.mean(np.square(z)) - 1) <= 0.18


def test_a_locked_checkpoint_is_fitted_from_its_answers(tiny_qwen3):
    config, weights = tiny_qwen3(seed=2)
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (6, 20))
    seen = taylor_model.observe_model(weights, tokens, config)
    errors = []
    for order in (6, 20):
        released = taylor_model.lock_model(weights, config, seen, order, CHEBYSHEV)
        result = query.query_model(released, tokens, config, CHEBYSHEV)
        (guess,) = result.guesses
        assert set(guess) == set(weights)
        downs = [k for k in weights if k.endswith(taylor_model.DOWN)]
        errors.append([relative_error(guess[k], weights[k]) for k in downs])
        # what is left of the outputs bounds what is wrong with the weights, through the features' condition
        assert all(np.max(noise) < 10 * max(errors[-1]) for noise in result.found["noise"])
    assert max(errors[1]) < 1e-3 and max(errors[1]) < 0.01 * max(errors[0]), "the better the lock, the better the fit"
    with pytest.raises(ValueError, match="layer 0: 9 samples for 40 unknowns"):
        query.query_model(released, np.arange(9), config, CHEBYSHEV)
    with pytest.raises(ValueError, match="layer 0 has no tensor"):
        query.query_model(weights, tokens, config)


@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_rounding_succeeds_at_the_sample_bound_and_fails_far_below_it(ratio):
    rng, n, failure = np.random.default_rng(9), 20, 1e-3
    needed = query.samples_needed(ratio, 1.0, n, failure)

    def wrong(samples):
        secret = rng.integers(-9, 10, (1, n))
        a = rng.standard_normal((samples, n))
        found = query.least_squares(a, a @ secret.T + ratio * rng.standard_normal((samples, 1)))
        return np.any(np.rint(found.weight) != secret)

    # inputs of covariance AᵀA/(m − n): n samples more keep the promise for small m
    assert not any(wrong(needed + n) for _ in range(20))
    assert ratio < 1 or all(wrong(needed // 16 + n) for _ in range(5))


def test_the_search_covers_its_span():
    t = np.array([-19.5, -7.0, 0.0, 6.5, 12.0])
    c = TAYLOR.coefficients("silu", t, 1.0, 6)
    found = recover(c[:, None, :] * np.array([[2.0], [-1.0]]), "silu")
    assert np.max(np.abs(found.points - t)) <= 1e-6, "where the curve is flat, the point is known less well"
    assert taylor_coefficients.SPAN == 20
