"""Every operation of the engine against other engines: torch for all, the autograd package for those that it has.

Values and vector-Jacobian products, drawn as in tests/ref. An operation without an oracle fails the first tests here.
Special functions are compared with fifty digits in tests/ref/test_special_points.py; the rest of them below.
"""

import autograd
import autograd.numpy as anp
import autograd.scipy.special as aspecial
import mpmath
import numpy as np
import pytest
import torch
from autograd.core import primitive_vjps
from hypothesis import Phase, given, settings
from torch.nn import functional

from lockref.autodiff import jvp, ops, primitive, vjp

from ..ref.op_cases import TABLE, rngs
from ..ref.test_special_points import SPECIAL

EPS = 2.0**-52


def tensor(x):
    return torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray | np.generic) else x


def axes(axis, x):
    return tuple(range(x.ndim)) if axis is None else axis


def reduction(f):
    """With no axes to reduce there is nothing to do: torch takes an empty tuple for all of them."""
    return lambda x, axis, keepdims: f(x, axes(axis, x), keepdims) if axes(axis, x) != () else x


def grouped(q, k, v, scale):
    if q.dim() == 3:
        return grouped(q[None], k[None], v[None], scale)[0]
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


def rotated(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.complex(tensor(cos), tensor(sin))
    return torch.cat((turned.real, turned.imag), -1)


def scattered(x, key, shape):
    positions = torch.from_numpy(np.arange(int(np.prod(shape))).reshape(shape)[key].ravel().copy())
    return torch.zeros(int(np.prod(shape)), dtype=x.dtype).index_add(0, positions, x.reshape(-1)).reshape(shape)


def picked(x, key):
    positions = np.arange(x.numel()).reshape(x.shape)[key]
    return x.reshape(-1)[torch.from_numpy(np.array(positions).ravel())].reshape(np.shape(positions))


def unit(x, eps):
    return functional.rms_norm(x, x.shape[-1:], eps=eps)


ACTIVATIONS = {
    "silu": functional.silu, "gelu_erf": functional.gelu, "relu": functional.relu, "tanh": torch.tanh,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}  # fmt: skip


def low_rank(x, a, b, activation):
    return x + functional.linear(ACTIVATIONS[activation](functional.linear(x, a)), b)


TORCH = {
    "add": torch.add,
    "attention": grouped,
    "broadcast_to": lambda x, shape: torch.broadcast_to(x, shape),
    "cross_entropy": lambda x, targets: functional.cross_entropy(x.flatten(0, -2), tensor(targets).flatten()),
    "divide": torch.divide,
    "erf": torch.erf,
    "exp": torch.exp,
    "gelu_erf": ACTIVATIONS["gelu_erf"],
    "gelu_tanh": ACTIVATIONS["gelu_tanh"],
    "getitem": picked,
    "join": lambda x, y, axis: torch.cat((x, y), axis),
    "log": torch.log,
    "low_rank": low_rank,
    "matmul": torch.matmul,
    "max": reduction(lambda x, axis, keepdims: torch.amax(x, axis, keepdim=keepdims)),
    "maximum": torch.maximum,
    "mean": reduction(lambda x, axis, keepdims: torch.mean(x, axis, keepdim=keepdims)),
    "multiply": torch.multiply,
    "negative": torch.negative,
    "normalize": unit,
    "normed_low_rank": lambda x, a, b, activation, eps: x + low_rank(unit(x, eps), a, b, activation) - unit(x, eps),
    "power": torch.pow,
    "relu": torch.relu,
    "reshape": lambda x, shape: torch.reshape(x, shape),
    "rms_norm": lambda x, gain, eps: functional.rms_norm(x, x.shape[-1:], gain, eps),
    "rope": rotated,
    "rsqrt": torch.rsqrt,
    "scatter": scattered,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "sqrt": torch.sqrt,
    "subtract": torch.subtract,
    "sum": reduction(lambda x, axis, keepdims: torch.sum(x, axis, keepdim=keepdims)),
    "swiglu": lambda z, u: functional.silu(z) * u,
    "take": lambda x, indices: functional.embedding(tensor(indices), x),
    "tanh": torch.tanh,
    "transpose": lambda x, axes: x.permute(tuple(range(x.dim())[::-1] if axes is None else axes)),
    "where": lambda x, y, condition: torch.where(tensor(condition), x, y),
}

# autograd 1.9 refuses new leading axes, inverts negative axes wrongly, and does not undo broadcasting of where.
AUTOGRAD = {
    **{name: getattr(anp, name) for name in (
        "add", "divide", "exp", "log", "matmul", "maximum", "multiply", "negative", "reshape", "sqrt", "subtract",
        "tanh",
    )},
    "broadcast_to": lambda x, shape: anp.broadcast_to(anp.reshape(x, (1,) * (len(shape) - x.ndim) + x.shape), shape),
    "erf": aspecial.erf,
    "getitem": lambda x, key: x[key],
    "join": lambda x, y, axis: anp.concatenate((x, y), axis),
    "max": lambda x, axis, keepdims: anp.max(x, axis=axis, keepdims=keepdims),
    "mean": lambda x, axis, keepdims: anp.mean(x, axis=axis, keepdims=keepdims),
    "power": lambda x, exponent: anp.power(x, exponent),
    "sigmoid": aspecial.expit,
    "sum": lambda x, axis, keepdims: anp.sum(x, axis=axis, keepdims=keepdims),
    "take": lambda x, indices: x[indices],
    "transpose": lambda x, axes: anp.transpose(x, axes and tuple(a % x.ndim for a in axes)),
    "where": lambda x, y, condition: anp.where(condition, x + 0 * condition, y + 0 * condition),
}  # fmt: skip


def test_no_operation_is_without_an_oracle():
    assert TORCH.keys() == ops.ALL.keys()
    theirs = {n for n in ops.ALL for home in (anp, aspecial) if getattr(home, n, None) in primitive_vjps}
    assert theirs <= AUTOGRAD.keys() <= ops.ALL.keys()


def answers(name, case, u, oracle):
    """Value and cotangents by an oracle."""
    if oracle == "torch":
        args = [tensor(x).requires_grad_() for x in case.args]
        out = TORCH[name](*args, **case.params)
        found = torch.autograd.grad(out, args, tensor(np.array(u)).reshape(out.shape), allow_unused=True)
        found = [torch.zeros_like(x) if g is None else g for x, g in zip(args, found, strict=True)]
        return out.detach().numpy(), [g.numpy() for g in found]
    found = []
    for i in range(len(case.args)):
        pullback, out = autograd.make_vjp(lambda *args: AUTOGRAD[name](*args, **case.params), i)(*case.args)
        found.append(pullback(np.asarray(u).reshape(np.shape(out))))
    return out, found


def compare(name, case, rng, oracle, op=None):
    """Within a few roundings of each of at most n terms."""
    out, pullback = vjp(lambda *a: (op or ops.ALL[name])(*a, **case.params), *case.args)
    u = rng.normal(size=np.shape(out))
    got = pullback(u)
    value, want = answers(name, case, u, oracle)
    arrays = [*case.args, out, u, *want]
    n, size = max(np.size(x) for x in arrays), max(1.0, *(float(np.max(np.abs(x), initial=0)) for x in arrays))
    tolerance = 8 * n * EPS * size**2
    for what, a, b in (
        ("value", out, value),
        *((f"∂{i}", a, b) for i, (a, b) in enumerate(zip(got, want, strict=True))),
    ):
        assert np.shape(a) == np.shape(b), f"{name} {what}: shape {np.shape(a)}, {oracle} {np.shape(b)}"
        off = np.max(np.abs(np.subtract(a, b)), initial=0)
        assert off <= tolerance, f"{name} {what}: differs from {oracle} by {off:.2g}, allowed {tolerance:.2g}: {case}"


@pytest.mark.parametrize("name", sorted(TORCH))
def test_against_torch(name):
    @settings(deadline=None, max_examples=8)
    @given(TABLE[name].cases, rngs)
    def check(case, rng):
        compare(name, case, rng, "torch")

    check()


@pytest.mark.parametrize("name", sorted(AUTOGRAD))
def test_against_autograd(name):
    @settings(deadline=None, max_examples=8)
    @given(TABLE[name].cases, rngs)
    def check(case, rng):
        compare(name, case, rng, "autograd")

    check()


@pytest.mark.parametrize("name", ["silu", "matmul", "rms_norm", "scatter"])
def test_a_rule_that_is_wrong_by_a_millionth_is_seen(name):
    honest = ops.ALL[name]
    wrong = primitive(honest.impl, residuals=honest.residuals, twin=honest.twin)
    wrong.vjps = {
        key: rule._replace(function=lambda *reads, f=rule.function: scale(f(*reads)))
        for key, rule in honest.vjps.items()
    }

    def scale(found):
        return tuple(g * (1 + 1e-6) for g in found) if isinstance(found, tuple) else found * (1 + 1e-6)

    @settings(deadline=None, max_examples=8, phases=[Phase.generate])
    @given(TABLE[name].cases, rngs)
    def check(case, rng):
        compare(name, case, rng, "torch", wrong)

    with pytest.raises(AssertionError, match=f"{name} ∂0: differs from torch"):
        check()


ELEMENTARY = {  # and their slopes
    "exp": (mpmath.exp, mpmath.exp),
    "log": (mpmath.log, lambda x: 1 / x),
    "sqrt": (mpmath.sqrt, lambda x: 1 / (2 * mpmath.sqrt(x))),
    "rsqrt": (lambda x: 1 / mpmath.sqrt(x), lambda x: -1 / (2 * x * mpmath.sqrt(x))),
}


def test_every_transcendental_function_has_fifty_digits_somewhere():
    elementary = {"exp", "log", "sqrt", "rsqrt", "erf", "gelu_erf", "gelu_tanh", "sigmoid", "silu", "tanh"}
    assert elementary == ELEMENTARY.keys() | SPECIAL.keys()


@pytest.mark.parametrize("name", ELEMENTARY)
def test_elementary_functions_against_fifty_digits(name):
    """Values and slopes to a few roundings, relative: none of them cancels."""
    value, derivative = ELEMENTARY[name]
    points = [1e-100, 1e-8, 0.3, 1.0, 1 + 2.0**-30, 5.0, 700.0, -700.0 if name == "exp" else 1e100]
    with mpmath.workdps(50):
        for x in np.array(points):
            want, slope = (f(mpmath.mpf(float(x))) for f in (value, derivative))
            got, pullback = vjp(ops.ALL[name], x)
            slopes = pullback(np.ones(()))[0], jvp(ops.ALL[name], [x], [np.ones(())])[1]
            assert abs(mpmath.mpf(float(got)) - want) <= 4 * EPS * abs(want), (name, x)
            assert all(abs(mpmath.mpf(float(s)) - slope) <= 8 * EPS * abs(slope) for s in slopes), (name, x)
