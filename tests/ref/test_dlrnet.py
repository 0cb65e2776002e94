"""The DLR-Net: one function in two forms, its gradients, parity in integers, and refusals in one line."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from lockref.autodiff import jvp, ops, vjp
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig

SIGMA = {
    "silu": lambda h: h / (1 + np.exp(-h)),
    "gelu_erf": lambda h: h / 2 * (1 + erf(h / math.sqrt(2))),
    "gelu_tanh": lambda h: h / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))),
    "relu": lambda h: h * (h > 0),
    "tanh": np.tanh,
}
EPS = np.finfo(float).eps
STEEPEST = 1.2  # |σ'| ≤ 1.13 for gelu, 1.10 for silu, 1 for the others

configs = st.builds(
    DLRConfig,
    width=st.integers(1, 6),
    rank=st.integers(1, 5),
    depth=st.integers(1, 4),
    norm=st.sampled_from(dlrnet.NORMS),
    activation=st.sampled_from(dlrnet.ACTIVATIONS),
    placement=st.sampled_from(dlrnet.PLACEMENTS),
    eps=st.sampled_from([1e-6, 1e-2]),
)
seeds = st.integers(0, 2**32 - 1)
batches = st.sampled_from([(1,), (3,), (2, 3)])
forms = st.booleans()


def draw(config, seed, batch):
    """Weights with B and gains away from 0 and 1, and an input."""
    rng = np.random.default_rng(seed)
    params = dlrnet.initialize(config, rng, b_scale=0.7)
    params = {n: rng.uniform(0.3, 2, w.shape) if n.endswith("gain") else w for n, w in params.items()}
    return params, rng.standard_normal((*batch, config.width)), rng


def blocks(params, x, config):
    """For each block its rows of states, their rms (1 without a norm), A, B and gain."""
    rows = x.reshape(-1, config.width)
    for i in range(config.depth):
        a, b = params[f"blocks.{i}.a"], params[f"blocks.{i}.b"]
        gain = params.get(f"blocks.{i}.gain", np.ones(config.width))
        rms = np.sqrt(np.mean(rows**2, axis=1) + config.eps) if config.norm != "none" else np.ones(len(rows))
        yield rows, rms, a, b, gain
        rows = rows + np.einsum(
            "dr,tr->td", b, SIGMA[config.activation](np.einsum("rd,d,td,t->tr", a, gain, rows, 1 / rms))
        )
    yield rows, np.ones(len(rows)), None, None, None


def roundings(config, rows):
    """Roundings that one block commits in a row: sums over d, r and tokens (a weight's gradient), and 40.

    The 40 are the additions, mean, square root, and an activation with an error of at most 16 eps |h|.
    """
    return EPS * (2 * config.width + 2 * config.rank + len(rows) + 40)


def by_definition(params, x, config):
    """The formula of the docstring, and a bound on the round-off of computing it.

    An error in x_l grows by 1 + ‖B‖ · 1.2 · ‖A diag γ‖ · Lip(N) with Lip(N) ≤ 1/rms, and each block adds
    its roundings of what it adds up.
    """
    error = 0.0
    for rows, rms, a, b, gain in blocks(params, x, config):
        size = np.linalg.norm(rows)
        if a is not None:
            grows = np.linalg.norm(b) * STEEPEST * np.linalg.norm(a * gain) / rms.min()
            error = error * (1 + grows) + roundings(config, rows) * (1 + grows) * size
    y = rows.reshape(x.shape)
    error += EPS * (size + np.linalg.norm(x))
    return y - x if config.placement == "difference" else y, error


@given(config=configs, seed=seeds, batch=batches, fused=forms)
@settings(max_examples=150, deadline=None)
def test_forward_is_the_definition(config, seed, batch, fused):
    params, x, _ = draw(config, seed, batch)
    got = dlrnet.forward(params, x, config, fused=fused)
    want, bound = by_definition(params, x, config)
    worst = np.max(np.abs(got - want))
    assert worst <= 2 * bound, f"{config}, fused={fused}: off by {worst:.3g}, round-off explains {2 * bound:.3g}"


@pytest.mark.parametrize("fault", ["gain left out", "norm left out", "B transposed", "one block skipped", "wrong sign"])
def test_the_definition_tells_faults_apart(fault):
    config = DLRConfig(4, 4, 3, "rms_gain", "silu")
    params, x, _ = draw(config, 1, (3,))
    want, bound = by_definition(params, x, config)
    wrong = dict(params)
    if fault == "gain left out":
        wrong["blocks.1.gain"] = np.ones(4)
    elif fault == "B transposed":
        wrong["blocks.1.b"] = params["blocks.1.b"].T
    elif fault == "one block skipped":
        wrong["blocks.2.b"] = np.zeros((4, 4))
    elif fault == "wrong sign":
        wrong["blocks.0.a"] = -params["blocks.0.a"]
    else:
        config = replace(config, norm="none")
        wrong = {n: w for n, w in params.items() if not n.endswith("gain")}
    for fused in (True, False):
        assert np.max(np.abs(dlrnet.forward(wrong, x, config, fused=fused) - want)) > 1e6 * bound


integers = st.integers(-2, 2)


@given(seed=seeds, depth=st.integers(1, 3), width=st.integers(1, 5), rank=st.integers(1, 4), batch=batches)
@settings(max_examples=60, deadline=None)
def test_fused_and_eager_agree_exactly_on_integers(seed, depth, width, rank, batch):
    """With relu, no norm and small integers nothing is rounded: values and gradients must be equal."""
    config = DLRConfig(width, rank, depth, "none", "relu")
    rng = np.random.default_rng(seed)
    params = {n: rng.integers(-2, 3, s).astype(float) for n, s in dlrnet.expected_tensors(config).items()}
    x, g = (rng.integers(-2, 3, (*batch, width)).astype(float) for _ in range(2))
    results = []
    for fused in (True, False):
        out, pullback = vjp(lambda p, x, f=fused: dlrnet.forward(p, x, config, fused=f), params, x)
        results.append((out, *pullback(g)))
    (fused_out, fused_p, fused_x), (eager_out, eager_p, eager_x) = results
    np.testing.assert_array_equal(fused_out, eager_out)
    np.testing.assert_array_equal(fused_x, eager_x)
    for name in params:
        np.testing.assert_array_equal(fused_p[name], eager_p[name], err_msg=name)


def adjoint_gap(params, x, config, fused, rng):
    """|⟨u, J v⟩ − ⟨Jᵀu, v⟩|, the first by the unfused forward rules, and what round-off explains of it."""
    tangents, dx = {n: rng.standard_normal(w.shape) for n, w in params.items()}, rng.standard_normal(x.shape)
    out, pushed = jvp(lambda p, x: dlrnet.forward(p, x, config, fused=False), (params, x), (tangents, dx))
    u = rng.standard_normal(out.shape)
    _, pullback = vjp(lambda p, x: dlrnet.forward(p, x, config, fused=fused), params, x)
    pulled, pulled_x = pullback(u)
    gap = np.sum(u * pushed) - sum(np.sum(pulled[n] * tangents[n]) for n in params) - np.sum(pulled_x * dx)
    return abs(gap), 2 * np.linalg.norm(u) * tangent_error(params, x, tangents, dx, config)


def tangent_error(params, x, tangents, dx, config):
    """What round-off explains of an error in J v: the sum of all its terms in norm, times their relative error.

    The norm's tangent has two terms of at most ‖dx‖/rms each, which may cancel. A term's relative error:
    a block's roundings, and its factors σ' and 1/rms taken at states that are off by the forward bound e:
    at most e (2 ‖A diag γ‖ + 3)/rms, since |σ''| < 2 and 1/rms enters three times.
    """
    _, forward_error = by_definition(params, x, config)
    size, relative = np.linalg.norm(dx), 0.0
    for i, (rows, rms, a, b, gain) in zip(range(config.depth), blocks(params, x, config), strict=False):
        da, db, dgain = (np.linalg.norm(tangents.get(f"blocks.{i}.{n}", 0.0)) for n in ("a", "b", "gain"))
        weight, normed = np.linalg.norm(a * gain), np.linalg.norm(rows / rms[:, None])
        into_h = 2 * weight * size / rms.min() + (da * gain.max() + np.linalg.norm(a) * dgain) * normed
        size += STEEPEST * (np.linalg.norm(b) * into_h + db * weight * normed)
        relative += roundings(config, rows) + forward_error * (2 * weight + 3) / rms.min()
    return relative * size


@given(config=configs, seed=seeds, batch=batches, fused=forms)
@settings(max_examples=100, deadline=None)
def test_reverse_mode_is_the_adjoint_of_forward_mode(config, seed, batch, fused):
    gap, tolerance = adjoint_gap(*draw(config, seed, batch)[:2], config, fused, np.random.default_rng(seed))
    assert gap <= tolerance, f"{config}, fused={fused}: off by {gap:.3g}, round-off explains {tolerance:.3g}"


@pytest.mark.parametrize("name", ["x", "a", "b"])
@pytest.mark.parametrize("op", [ops.low_rank, ops.normed_low_rank], ids=lambda op: op.name)
def test_the_adjoint_identity_sees_a_gradient_off_by_a_thousandth(op, name, monkeypatch):
    config = DLRConfig(4, 3, 3, "none" if op is ops.low_rank else "rms_gain")
    wrong = {
        args: rule._replace(function=off_by_a_thousandth(rule, args.index(name))) if name in args else rule
        for args, rule in op.vjps.items()
    }
    monkeypatch.setattr(op, "vjps", wrong)
    monkeypatch.setattr(op, "_plans", {})
    gap, tolerance = adjoint_gap(*draw(config, 5, (3,))[:2], config, True, np.random.default_rng(5))
    assert gap > tolerance


def off_by_a_thousandth(rule, i):
    def function(*reads):
        found = rule.function(*reads)
        if len(rule.args) == 1:
            return found * (1 + 1e-3)
        return tuple(c * (1 + 1e-3) if j == i else c for j, c in enumerate(found))

    return function


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", dlrnet.ACTIVATIONS)
@pytest.mark.parametrize("fused", [True, False])
def test_dtype_is_kept(dtype, activation, fused):
    for norm in dlrnet.NORMS:
        config = DLRConfig(3, 2, 2, norm, activation)
        params = dlrnet.initialize(config, np.random.default_rng(0), b_scale=1, dtype=dtype)
        out, pullback = vjp(lambda p, x, c=config: dlrnet.forward(p, x, c, fused=fused), params, np.ones((2, 3), dtype))
        assert out.dtype == dtype, f"{norm}, {activation}: {out.dtype} from {np.dtype(dtype)}"
        assert {w.dtype for w in pullback(out)[0].values()} == {np.dtype(dtype)}


@given(config=configs, seed=seeds, batch=batches, fused=forms)
@settings(max_examples=50, deadline=None)
def test_blocks_start_as_the_identity(config, seed, batch, fused):
    rng = np.random.default_rng(seed)
    params = dlrnet.initialize(config, rng)
    x = rng.standard_normal((*batch, config.width))
    want = np.zeros_like(x) if config.placement == "difference" else x
    np.testing.assert_array_equal(dlrnet.forward(params, x, config, fused=fused), want)


@given(config=configs, seed=seeds)
@settings(max_examples=50, deadline=None)
def test_parameters_are_counted_and_drawn_from_the_generator_alone(config, seed):
    first, again = (dlrnet.initialize(config, np.random.default_rng(seed), b_scale=0.1) for _ in range(2))
    assert {n: w.shape for n, w in first.items()} == dlrnet.expected_tensors(config)
    assert sum(w.size for w in first.values()) == config.parameters
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_initial_scales():
    config = DLRConfig(300, 200, 1, "rms")
    params = dlrnet.initialize(config, np.random.default_rng(0), b_scale=0.5)
    for name, std in (("blocks.0.a", 300**-0.5), ("blocks.0.b", 0.5 * 200**-0.5)):
        # the relative error of a standard deviation of n normal numbers is 1/√(2n); five of them
        assert abs(np.std(params[name]) / std - 1) < 5 / math.sqrt(2 * params[name].size)


def fits(width, mlp_width, depth, norm, rank):
    return DLRConfig(width, rank, depth, norm).parameters <= 3 * width * mlp_width


@given(
    width=st.integers(1, 5000),
    depth=st.integers(1, 300),
    spare=st.integers(0, 30000),
    norm=st.sampled_from(dlrnet.NORMS),
)
def test_parity_is_the_largest_rank_that_fits(width, depth, spare, norm):
    mlp_width = depth + spare  # enough for rank 1 whatever the norm
    found = dlrnet.parity(width, mlp_width, depth, norm)
    assert fits(width, mlp_width, depth, norm, found.rank)
    assert not fits(width, mlp_width, depth, norm, found.rank + 1)
    assert found.parameters == DLRConfig(width, found.rank, depth, norm).parameters
    assert found.remainder == 3 * width * mlp_width - found.parameters
    assert 0 <= found.remainder < 2 * depth * width


@given(width=st.integers(1, 5000), depth=st.integers(1, 300), quotient=st.integers(1, 100))
def test_parity_is_exact_where_2L_divides_3m(width, depth, quotient):
    mlp_width = 2 * depth * quotient
    for norm in ("none", "rms"):
        found = dlrnet.parity(width, mlp_width, depth, norm)
        assert found.rank * depth * 2 == 3 * mlp_width and found.remainder == 0


def test_parity_of_a_known_model():
    """Qwen3-0.6B's MLP, d = 1024, m = 3072: r = 4608 / L."""
    ranks = {L: dlrnet.parity(1024, 3072, L).rank for L in (1, 16, 48, 288, 4608)}
    assert ranks == {1: 4608, 16: 288, 48: 96, 288: 16, 4608: 1}
    assert dlrnet.parity(1024, 3072, 100).remainder == 1024 * (3 * 3072 - 100 * 2 * 46)


GOOD = {"width": 4, "rank": 2, "depth": 3}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"width": -4}, "width is -4"),
        ({"rank": 2.0}, r"rank is 2\.0"),
        ({"depth": True}, "depth is True"),
        ({"norm": "layer"}, "choose from none, rms, rms_gain"),
        ({"activation": "elu"}, "choose from silu"),
        ({"activation": ["silu"]}, "unknown"),
        ({"placement": None}, "choose from difference, output, stream"),
        ({"eps": 0.0}, r"eps is 0\.0"),
        ({"eps": math.nan}, "eps is nan"),
        ({"eps": "1e-6"}, "eps is '1e-6'"),
    ],
)
def test_bad_configs_say_what_is_wrong(change, says):
    with pytest.raises(ValueError, match=says) as caught:
        DLRConfig(**GOOD | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((128, 384, 577), "depth of at most 576"),
        ((128, 384, 385, "rms_gain"), "depth of at most 384"),
        ((128, 0, 4), "mlp_width is 0"),
        ((128, 384, 0), "depth is 0"),
        ((128.0, 384, 4), r"width is 128\.0"),
        ((128, 384, 4, "batch"), "unknown"),
    ],
)
def test_impossible_parity_says_what_is_possible(arguments, says):
    with pytest.raises(ValueError, match=says):
        dlrnet.parity(*arguments)
    assert dlrnet.parity(128, 384, 576).rank == 1
    assert dlrnet.parity(128, 384, 384, "rms_gain").rank == 1


def without(name):
    return lambda p: {n: w for n, w in p.items() if n != name}


@pytest.mark.parametrize(
    ("break_params", "shape", "says"),
    [
        (without("blocks.1.b"), (2, 4), r"blocks\.1\.b is missing"),
        (lambda p: p | {"blocks.3.a": p["blocks.0.a"]}, (2, 4), r"blocks\.3\.a is unexpected"),
        (lambda p: p | {"blocks.0.gain": np.ones(4)}, (2, 4), r"blocks\.0\.gain is unexpected"),
        (
            lambda p: p | {"blocks.2.a": p["blocks.2.a"].T},
            (2, 4),
            r"blocks\.2\.a has shape \(4, 2\), expected \(2, 4\)",
        ),
        (dict, (2, 5), r"input has shape \(2, 5\); it needs \(…, tokens, 4\)"),
        (dict, (4,), r"input has shape \(4,\)"),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_mismatched_tensors_say_which(break_params, shape, says, fused):
    config = DLRConfig(**GOOD)
    params = dlrnet.initialize(config, np.random.default_rng(0))
    with pytest.raises(ValueError, match=says):
        dlrnet.forward(break_params(params), np.ones(shape), config, fused=fused)


def test_every_activation_of_the_engine_is_offered():
    assert set(dlrnet.ACTIVATIONS) == set(ops.ACTIVATIONS) == set(SIGMA)
