"""Values and derivatives where floating point is hard: saturation, overflow, cancellation, ties, infinities."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from scipy import special

from lockref.autodiff import grad, jvp, ops, vjp
from lockref.autodiff.gradcheck import gradcheck
from lockref.autodiff.ops import grouped_attention

POINTS = [0.0, 1e-8, 0.3, 1.0, 5.0, 8.0, 17.0, 40.0, 90.0, 400.0, 740.0, 1e4, 1e8]
SPECIAL: dict[str, Callable[[Any], Any]] = {
    "erf": mpmath.erf,
    "gelu_erf": lambda x: x * mpmath.ncdf(x),
    "gelu_tanh": lambda x: x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf(0.044715) * x**3))),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh,
}
RELATIVE = {"erf", "sigmoid", "silu", "tanh"}  # gelu adds 1 to a number that may be close to −1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", SPECIAL)
def test_special_functions_against_fifty_digits(name: str, dtype: Any) -> None:
    """Values to a few roundings; slopes to a few roundings of the numbers of size min(|x|, 40) that they add up.

    Beyond 40 every one of these functions has saturated. No warning may escape on the way.
    """
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
    op = ops.ALL[name]
    with mpmath.workdps(50):
        for x in np.array([*POINTS, *(-p for p in POINTS)], dtype):
            want = SPECIAL[name](mpmath.mpf(float(x)))
            size = abs(want) if name in RELATIVE else max(abs(want), abs(float(x)) / 2)
            got, pullback = vjp(op, x)
            assert abs(mpmath.mpf(float(got)) - want) <= 4 * eps * size + tiny * max(1, abs(float(x))), (x, got, want)

            slope = mpmath.diff(SPECIAL[name], mpmath.mpf(float(x)), h=mpmath.mpf(10) ** -20)
            reverse, forward = pullback(np.ones((), dtype))[0], jvp(op, [x], [np.ones((), dtype)])[1]
            tolerance = 8 * eps * (1 + min(abs(float(x)), 40))
            assert abs(mpmath.mpf(float(reverse)) - slope) <= tolerance, (x, reverse, slope)
            assert abs(mpmath.mpf(float(forward)) - slope) <= tolerance, (x, forward, slope)


def slopes(op: Any, *args: Any, **params: Any) -> list[Any]:
    """J applied to all tangents at once, and Jᵀ of ones: at a tie both must follow the stated rule."""
    _, pushed = jvp(lambda *a: op(*a, **params), args, [np.ones_like(x) for x in args])
    out, pullback = vjp(lambda *a: op(*a, **params), *args)
    return [pushed, *pullback(np.ones_like(out))]


def test_maximum_shares_a_tie_in_halves() -> None:
    x, y = np.array([1.0, 1.0, 2.0, -0.0]), np.array([1.0, 2.0, 1.0, 0.0])
    pushed, gx, gy = slopes(ops.maximum, x, y)
    assert gx.tolist() == [0.5, 0, 1, 0.5]
    assert gy.tolist() == [0.5, 1, 0, 0.5]
    assert pushed.tolist() == [1, 1, 1, 1]
    assert vjp(lambda x: ops.maximum(x, y), x)[1](np.ones(4))[0].tolist() == [0.5, 0, 1, 0.5]
    assert vjp(lambda y: ops.maximum(x, y), y)[1](np.ones(4))[0].tolist() == [0.5, 1, 0, 0.5]


def test_max_shares_a_tie_equally() -> None:
    x = np.array([[3.0, 3.0, 1.0, 3.0], [0.0, 5.0, 5.0, -5.0]])
    pushed, gx = slopes(ops.max, x, axis=1)
    assert np.allclose(gx, [[1 / 3, 1 / 3, 0, 1 / 3], [0, 0.5, 0.5, 0]], rtol=1e-15)
    assert np.allclose(pushed, [1, 1], rtol=1e-15)
    assert slopes(ops.max, x)[1].tolist() == [[0, 0, 0, 0], [0, 0.5, 0.5, 0]]


def test_relu_is_flat_at_zero() -> None:
    x = np.array([0.0, -0.0, 1.0, -1.0])
    pushed, gx = slopes(ops.relu, x)
    assert pushed.tolist() == gx.tolist() == [0, 0, 1, 0]
    assert slopes(grad(lambda x: ops.sum(ops.relu(x))), x)[1].tolist() == [0, 0, 0, 0]


def test_infinities_and_not_a_number_pass_through_relu() -> None:
    with np.errstate(all="raise"):
        got = ops.relu(np.array([np.inf, -np.inf, np.nan]))
    assert np.array_equal(got, [np.inf, 0, np.nan], equal_nan=True)


def test_where_hides_the_branch_not_taken() -> None:
    """Even where that branch has an infinite derivative; the condition may be any truth value."""
    for condition in (np.array([True, False]), np.array([2, 0]), [True, False]):
        _, pullback = vjp(lambda x, y, c=condition: ops.where(x, y, condition=c), np.ones(2), np.ones(2))
        gx, gy = pullback(np.array([3.0, np.inf]))
        assert (gx.tolist(), gy.tolist()) == ([3, 0], [0, np.inf])


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_softmax_neither_overflows_nor_underflows(scale: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5)) * scale
    for axis in (-1, 0):
        with np.errstate(over="raise", invalid="raise"):
            got = ops.softmax(x, axis=axis)
        # e^t for t of size `scale` is wrong by |t| eps, where it is not 0
        assert np.allclose(got, special.softmax(x, axis=axis), rtol=8 * 2**-52 * min(700.0, 10 * scale), atol=2**-50)
    gradcheck(lambda x: ops.softmax(x, axis=0), x, rng=rng)


@pytest.mark.parametrize("op", [ops.normalize, ops.rms_norm])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_norms_of_tiny_and_huge_rows(op: Any, scale: float) -> None:
    rng = np.random.default_rng(1)
    args = [rng.normal(size=(4, 3)) * scale, rng.normal(size=3)][: len(op.args)]
    gradcheck(op, *args, rng=rng, eps=1e-6)


def test_cross_entropy_of_a_certain_model() -> None:
    """p − 1 cancels where the target's probability is close to 1: right, and only as exact as p."""
    rng = np.random.default_rng(2)
    targets = np.array([3, 0, 3])
    logits = np.eye(4)[targets] * 30 + rng.normal(size=(3, 4))
    gradcheck(ops.cross_entropy, logits, rng=rng, targets=targets)
    huge = logits * 1e6
    assert ops.cross_entropy(huge, targets=targets) == 0
    assert np.isfinite(ops.cross_entropy(-huge, targets=targets))


def test_attention_in_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile is an implementation detail: three tiles, the last one short, give what one gives."""
    rng = np.random.default_rng(3)
    q, k, v = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(2, 2, 5, 3)), rng.normal(size=(2, 2, 5, 3))
    whole = ops.attention(q, k, v, scale=0.5)
    monkeypatch.setattr(grouped_attention, "_TILE", 2)
    assert np.allclose(ops.attention(q, k, v, scale=0.5), whole, rtol=1e-13, atol=1e-15)
    gradcheck(ops.attention, q, k, v, rng=rng, scale=0.5)


def test_attention_never_looks_ahead() -> None:
    rng = np.random.default_rng(4)
    q, k, v = (rng.normal(size=(1, 1, 4, 2)) for _ in range(3))
    _, pullback = vjp(lambda *a: ops.attention(*a, scale=1.0), q, k, v)
    u = np.zeros_like(q)
    u[..., 1, :] = rng.normal(size=2)
    gq, gk, gv = pullback(u)
    assert np.all(gq[..., [0, 2, 3], :] == 0)
    assert np.all(gk[..., 2:, :] == 0) and np.all(gv[..., 2:, :] == 0)
    assert np.all(gv[..., :2, :] != 0)


def test_attention_with_scores_that_saturate() -> None:
    rng = np.random.default_rng(5)
    q, k, v = rng.normal(size=(2, 3, 2)) * 1e3, rng.normal(size=(1, 3, 2)) * 1e3, rng.normal(size=(1, 3, 2))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        out, pullback = vjp(lambda *a: ops.attention(*a, scale=1.0), q, k, v)
        assert all(np.all(np.isfinite(g)) for g in (out, *pullback(rng.normal(size=out.shape))))


def test_rope_tables_are_powers_of_one_rotation() -> None:
    """e^{i p θ^(−2j/c)} at positions that do not start at 0, and in the precision asked for."""
    positions, width, theta = np.array([3, 4, 1000]), 6, 1e4
    cos, sin = ops.rope_tables(positions, width, theta)
    turn = np.exp(1j * theta ** (-2 * np.arange(3) / width))
    assert np.allclose(cos + 1j * sin, turn ** positions[:, None], rtol=1e-12)
    assert ops.rope_tables(positions, width, theta, np.float32)[0].dtype == np.float32


def test_concatenate_any_number_of_arrays() -> None:
    rng = np.random.default_rng(6)
    parts = [rng.normal(size=(2, n)) for n in (1, 3, 2, 1, 4)]
    assert np.array_equal(ops.concatenate(parts, axis=1), np.concatenate(parts, axis=1))
    gradcheck(lambda parts: ops.concatenate(parts, axis=1), parts, rng=rng)
