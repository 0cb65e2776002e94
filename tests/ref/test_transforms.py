"""Reverse and forward mode as functions of functions: nesting, structure, aliases and precision."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from lockref.autodiff import Traced, grad, hvp, jacfwd, jacrev, jvp, ops, value_and_grad, vjp
from lockref.autodiff.gradcheck import gradcheck
from lockref.autodiff.tree import flatten

Array = np.ndarray[Any, Any]
VECTOR = np.array([1.0, 2.0, 3.0])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def network(params: dict[str, Any], x: Any) -> Any:
    """A small model that uses a bit of everything: two kinds of blocks, tied weights, a loss."""
    cos, sin = ops.rope_tables(np.arange(3, 3 + x.shape[-2]), x.shape[-1], 100.0, x.dtype)
    for block in params["blocks"]:
        h = ops.rms_norm(x, block["gain"], eps=1e-6)
        h = ops.rope(h, cos=cos, sin=sin)[None]
        x = x + ops.attention(h, h, h, scale=0.5)[0]
        x = ops.normed_low_rank(x, *block["pair"], activation="silu", eps=1e-6)
    logits = x @ params["table"].T
    return ops.cross_entropy(logits, targets=np.arange(x.shape[-2]) % params["table"].shape[0])


def network_arguments(rng: np.random.Generator, dtype: Any = np.float64) -> tuple[dict[str, Any], Array]:
    def normal(*shape: int) -> Array:
        return rng.normal(size=shape).astype(dtype)

    blocks = [{"gain": normal(4), "pair": (normal(2, 4), normal(4, 2))} for _ in range(2)]
    return {"blocks": blocks, "table": normal(5, 4)}, normal(3, 4)


# --- derivatives of derivatives -------------------------------------------------------------------------------------


def test_a_model_and_its_gradient_have_the_right_derivatives(rng: np.random.Generator) -> None:
    params, x = network_arguments(rng)
    assert gradcheck(network, params, x, rng=rng, draws=2).oracle == "complex step"
    gradcheck(grad(network, (0, 1)), params, x, rng=rng, argnums=1)


def test_hessian_vector_products_agree_however_they_are_nested(rng: np.random.Generator) -> None:
    x, v = rng.normal(size=5), rng.normal(size=5)

    def f(x: Any) -> Any:
        return ops.sum(ops.tanh(x[::-1] * x) * ops.exp(-x * x))

    forward_over_reverse = jvp(grad(f), [x], [v])[1]
    reverse_over_reverse = vjp(grad(f), x)[1](v)[0]
    reverse_over_forward = grad(lambda x: jvp(f, [x], [v])[1])(x)
    forward_over_forward = [jvp(lambda x, e=e: jvp(f, [x], [v])[1], [x], [e])[1] for e in np.eye(5)]
    dense = jacrev(grad(f))(x) @ v
    scale = np.abs(jacfwd(grad(f))(x)) @ np.abs(v)  # Σ|H_ij v_j|, which rounding errors are relative to
    for other in (reverse_over_reverse, reverse_over_forward, forward_over_forward, dense, hvp(f)(x, v)):
        assert np.all(np.abs(forward_over_reverse - other) <= 64 * 2**-52 * scale)


def test_derivatives_of_every_order() -> None:
    """d/dx of x⁵, again and again: 5x⁴, 20x³, 60x², 120x, 120, 0; each by either mode."""

    def forward(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda x: jvp(f, [x], [np.ones(())])[1]

    want = [5 * 3.0**4, 20 * 3.0**3, 60 * 3.0**2, 120 * 3.0, 120.0, 0.0]
    for modes in ([grad] * 6, [forward] * 6, [grad, forward] * 3, [forward, grad] * 3):
        f: Callable[[Any], Any] = lambda x: x * x * x * x * x  # noqa: E731
        for mode, value in zip(modes, want, strict=True):
            f = mode(f)
            assert f(np.array(3.0)) == value


def test_nested_transforms_do_not_confuse_their_perturbations() -> None:
    """d/dx [x · d/dy (x + y)] = 1 and d/dx [x · d/dy (x y)] = 2x (Siskind & Pearlmutter, HOSC 21, 2008)."""

    def forward(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda x: jvp(f, [x], [np.ones(())])[1]

    one, three = np.array(1.0), np.array(3.0)
    for outer in (grad, forward):
        for inner in (grad, forward):
            assert outer(lambda x, inner=inner: x * inner(lambda y: x + y)(one))(three) == 1
            assert outer(lambda x, inner=inner: x * inner(lambda y: x * y)(one))(three) == 6
            assert outer(lambda x, inner=inner: x * inner(lambda y: x * y)(x * x))(three) == 6
            # the inner derivative at a point that does not move, of a function that does
            assert outer(lambda x, inner=inner: inner(lambda y: y * y * x)(three))(one) == 6


def test_a_value_of_an_outer_transform_is_a_constant_inside() -> None:
    x = np.array([1.0, 2.0])
    inner = grad(lambda y: ops.sum(y * y))
    assert grad(lambda x: ops.sum(inner(np.array([5.0, 7.0])) * x))(x).tolist() == [10, 14]


def test_mixed_second_derivatives_reach_through_fused_operations(rng: np.random.Generator) -> None:
    """∂²L/∂table∂(all): only the cotangents of the fused operations depend on the table."""
    params, x = network_arguments(rng)
    tangent = {
        "blocks": [{"gain": 0 * b["gain"], "pair": (0 * b["pair"][0], 0 * b["pair"][1])} for b in params["blocks"]]
    }
    tangent["table"] = rng.normal(size=params["table"].shape)

    def of_table(table: Any) -> Any:
        return grad(network, (0, 1))({**params, "table": table}, x)

    through_cotangents = flatten(jvp(of_table, [params["table"]], [tangent["table"]])[1])[0]
    everything = flatten(jvp(lambda p: grad(network, (0, 1))(p, x), [params], [tangent])[1])[0]
    for a, b in zip(through_cotangents, everything, strict=True):
        assert np.allclose(a, b, rtol=1e-12, atol=1e-13)  # sums of some 100 products of numbers around 1


def test_a_hidden_pullback_sees_the_gradient_of_a_gradient_penalty(rng: np.random.Generator) -> None:
    x, w = rng.normal(size=(3, 2)), rng.normal(size=(2, 2))

    def penalty(w: Any, x: Any) -> Any:
        g = grad(lambda x: ops.sum(ops.silu(x @ w)))(x)
        return ops.sum(g * g)

    gradcheck(penalty, w, x, rng=rng)


# --- graphs --------------------------------------------------------------------------------------------------------


def test_a_node_used_many_times_collects_every_cotangent() -> None:
    x = np.array([2.0, -3.0])
    assert grad(lambda x: ops.sum(x * x + x + x - x / x))(x).tolist() == [6, -4]
    assert grad(lambda x: ops.sum(ops.matmul(x[None], x[:, None])))(x).tolist() == [4, -6]

    def doubling(x: Any) -> Any:
        for _ in range(40):
            x = x + x
        return ops.sum(x)

    assert grad(doubling)(x).tolist() == [2.0**40] * 2


def test_outputs_may_be_inputs_constants_and_each_other() -> None:
    x, y = np.array([1.0, 2.0]), np.array([5.0])

    def f(x: Any, y: Any) -> Any:
        z = x * 3.0
        return {"z": z, "again": z, "x": x, "constant": np.ones(2), "nothing": None}

    value, pullback = vjp(f, x, y)
    assert list(value) == ["z", "again", "x", "constant", "nothing"]
    assert value["nothing"] is None
    u = {"z": np.array([1.0, 0]), "again": np.array([10.0, 0]), "x": np.array([0, 7.0]), "constant": np.ones(2)}
    gx, gy = pullback({**u, "nothing": None})
    assert (gx.tolist(), gy.tolist()) == ([33, 7], [0])
    _, pushed = jvp(f, [x, y], [np.array([1.0, 2.0]), y])
    assert {k: t.tolist() for k, t in pushed.items() if t is not None} == {
        "z": [3, 6], "again": [3, 6], "x": [1, 2], "constant": [0, 0]
    }  # fmt: skip


def test_one_array_as_two_arguments_is_two_variables() -> None:
    x = np.array([2.0, 3.0])
    gx, gy = grad(lambda x, y: ops.sum(x * x * y), (0, 1))(x, x)
    assert (gx.tolist(), gy.tolist()) == ([8, 18], [4, 9])
    gx, gy = grad(lambda pair: ops.sum(pair[0] * pair[0] * pair[1]))([x, x])
    assert (gx.tolist(), gy.tolist()) == ([8, 18], [4, 9])


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "as it is": lambda x: x,
    "Fortran order": np.asfortranarray,
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "transposed": lambda x: x.T.copy().T,
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "not aligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(layout: str, rng: np.random.Generator) -> None:
    x = LAYOUTS[layout](rng.normal(size=(4, 4)))

    def f(x: Any) -> Any:
        return ops.sum(ops.rms_norm(x @ x.T + x[::2].reshape(4, 2) @ x[:2], x[0], eps=0.1), axis=0)

    def gradient(x: Any) -> Any:
        return vjp(f, x)[1](np.arange(1.0, 5.0))[0]

    assert np.allclose(gradient(x), gradient(np.ascontiguousarray(x)), rtol=1e-12, atol=1e-14)
    assert np.allclose(jvp(f, [x], [x])[1], jvp(f, [x.copy()], [x.copy()])[1], rtol=1e-12, atol=1e-14)


def test_overlapping_views_of_one_variable(rng: np.random.Generator) -> None:
    x = rng.integers(-4, 5, (3, 4)).astype(float)

    def f(x: Any) -> Any:
        flat = x.reshape(-1)
        return ops.sum(flat[2:] * flat[:-2]) + ops.sum(x.T[1:3] * x[:, 1:3].T) + ops.sum(flat[[0, 0, 5]] * flat[5])

    want = np.zeros(12)
    flat = x.ravel()
    want[2:] += flat[:-2]
    want[:-2] += flat[2:]
    want.reshape(3, 4)[:, 1:3] += 2 * x[:, 1:3]
    want[0] += 2 * flat[5]
    want[5] += 2 * flat[0] + 2 * flat[5]
    assert np.array_equal(grad(f)(x).ravel(), want)


def test_empty_arrays_and_scalars() -> None:
    assert grad(lambda x: ops.sum(x * x))(np.zeros((0, 3))).shape == (0, 3)
    assert grad(lambda x: ops.sum(ops.tanh(x)))(np.zeros((2, 0, 3))).shape == (2, 0, 3)
    for x in (3.0, np.float64(3.0), np.array(3.0)):
        value, g = value_and_grad(lambda x: x * x)(x)
        assert (float(value), float(g)) == (9, 6)
        assert np.shape(g) == ()


def test_pulls_are_independent_of_each_other(rng: np.random.Generator) -> None:
    """A second pull gives the same bits, does not touch the result of the first, and pulls are linear."""
    params, x = network_arguments(rng)
    _, pullback = vjp(network, params, x)
    first = flatten(pullback(np.array(1.0)))[0]
    copies = [g.copy() for g in first]
    double = flatten(pullback(np.array(-2.0)))[0]
    again = flatten(pullback(np.array(1.0), release=True))[0]
    for g, copy, twice, same in zip(first, copies, double, again, strict=True):
        assert np.array_equal(g, copy) and np.array_equal(same, copy) and np.array_equal(twice, -2 * copy)


def test_nothing_that_is_passed_in_changes(rng: np.random.Generator) -> None:
    params, x = network_arguments(rng)
    leaves = [*flatten(params)[0], x]
    before = [a.copy() for a in leaves]
    for a in leaves:
        a.flags.writeable = False
    gradient = grad(network, (0, 1))(params, x)
    jvp(network, (params, x), gradient)
    hvp(network)(params, x, gradient[0])
    assert all(np.array_equal(a, b) for a, b in zip(before, leaves, strict=True))


# --- structure -----------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: Any
    right: Any


def test_gradients_have_the_structure_of_their_argument() -> None:
    tree = {"b": [np.ones(2), (np.ones(()), None)], "a": Pair(np.ones((1, 3)), {})}

    def f(tree: Any) -> Any:
        return ops.sum(tree["b"][0] * 2.0) + tree["b"][1][0] * ops.sum(tree["a"].left)

    g = grad(f)(tree)
    assert list(g) == ["b", "a"]
    assert g["b"][0].tolist() == [2, 2]
    assert g["b"][1] == (3, None)
    assert isinstance(g["a"], Pair)
    assert g["a"].left.tolist() == [[1, 1, 1]]
    assert g["a"].right == {}
    assert jvp(f, [tree], [g])[1] == 4 + 4 + 9 + 3


def test_cotangents_and_tangents_find_their_array_by_name() -> None:
    _, pullback = vjp(lambda x: {"a": x * 2.0, "b": x * 3.0}, VECTOR)
    zero, one = np.zeros(3), np.ones(3)
    assert pullback({"b": one, "a": zero})[0].tolist() == pullback({"a": zero, "b": one})[0].tolist() == [3, 3, 3]
    primals = [{"a": VECTOR, "b": VECTOR}]
    assert jvp(lambda p: p["a"] * p["b"] * p["b"], primals, [{"b": zero, "a": one}])[1].tolist() == [1, 4, 9]


def test_jacobians_of_every_rank_in_either_mode() -> None:
    def f(x: Any) -> Any:
        return x * x * ops.sum(x)

    for x in (np.array(2.0), VECTOR, np.arange(4.0).reshape(2, 2)):
        reverse, forward = jacrev(f)(x), jacfwd(f)(x)
        assert reverse.shape == forward.shape == 2 * x.shape
        assert np.array_equal(reverse, forward)
        for outer in (jacrev, jacfwd):
            for inner in (jacrev, jacfwd):
                assert np.array_equal(outer(inner(f))(x), jacrev(jacrev(f))(x))


def test_argnums_choose_and_order_the_gradients() -> None:
    x, y, tokens = np.array(2.0), np.array(3.0), np.array([0, 1])

    def f(x: Any, tokens: Any, y: Any) -> Any:
        return x * x * y * len(tokens)

    assert grad(f)(x, tokens, y) == 24
    assert grad(f, 2)(x, tokens, y) == 8
    assert grad(f, -1)(x, tokens, y) == 8
    assert grad(f, (2, 0))(x, tokens, y) == (8, 24)
    assert grad(f, (0,))(x, tokens, y) == (24,)
    assert vjp(f, x, tokens, y, argnums=(0, 2))[1](np.array(1.0)) == (24, 8)
    assert jacrev(f, -1)(x, tokens, y) == jacfwd(f, -1)(x, tokens, y) == 8
    assert hvp(f, -3)(x, tokens, y, np.array(1.0)) == 12


def test_frozen_arguments_reach_the_function_as_they_are() -> None:
    x, y = np.ones(2), np.ones(2)

    def f(x: Any, y: Any) -> Any:
        assert isinstance(x, Traced) and y is frozen
        return x * y

    frozen = y
    vjp(f, x, y, argnums=0)


# --- precision -----------------------------------------------------------------------------------------------------


def test_single_precision_stays_single(rng: np.random.Generator) -> None:
    params, x = network_arguments(rng, np.float32)
    value, pullback = vjp(network, params, x)
    pulled = pullback(np.float32(1))
    pushed = jvp(network, (params, x), pulled)
    second = hvp(network)(params, x, pulled[0])
    for a in [value, *flatten(pulled)[0], *pushed, *flatten(second)[0]]:
        assert a.dtype == np.float32
    x = np.float32([1, 2])
    assert jvp(lambda x: 2.0**x, [x], [np.array([1.0, 2.0])])[1].dtype == np.float32  # as its primal
    assert jvp(lambda x: x.value, [x], [x])[1].dtype == np.float32  # zeros


def test_each_cotangent_has_the_precision_of_its_argument(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=3).astype(np.float32), rng.normal(size=3)
    gx, gy = grad(lambda x, y: ops.sum(x * y), (0, 1))(x, y)
    assert (gx.dtype, gy.dtype) == (np.float32, np.float64)
    hessian = 2 * y * y  # of Σ (x y)², in mixed precision and through both modes
    assert np.allclose(hvp(lambda x: ops.sum(x * y * x * y))(x, x), hessian * x, rtol=1e-6)
    assert np.allclose(jacrev(grad(lambda x: ops.sum(x * y * x * y)))(x), np.diag(hessian), rtol=1e-6)
