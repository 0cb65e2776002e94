"""Errors of the engine: one line that says what, where, and what to do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockref.autodiff import grad, jvp, ops, primal, primitive, vjp

VECTOR = np.array([1.0, 2.0, 3.0])


def assign(x: Any) -> Any:
    x[0] = 1.0
    return x


def add_in_place(x: Any) -> Any:
    out = np.zeros(3)
    out += x
    return out


def assign_into_plain(x: Any) -> Any:
    out = np.zeros(3)
    out[:] = x
    return out


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "assignment": (lambda: grad(assign)(VECTOR), TypeError, r"in-place assignment.*\(3,\).*where\(\)"),
    "assignment into an array": (lambda: grad(assign_into_plain)(VECTOR), TypeError, "plain ndarray.*operations"),
    "in-place addition": (lambda: grad(add_in_place)(VECTOR), TypeError, r"in-place numpy.add.*a = a \+ x"),
    "array by keyword": (lambda: grad(lambda x: ops.add(x, y=x))(VECTOR), TypeError, "y is traced.*by position"),
    "argument named twice": (lambda: vjp(ops.add, VECTOR, VECTOR, argnums=(0, 0)), ValueError, "name each once"),
    "argument out of range": (lambda: grad(ops.sum, 1)(VECTOR), ValueError, "argnums=1 .* 1 arguments"),
    "gradient of a dict": (lambda: grad(lambda x: {"loss": x})(np.array(1.0)), ValueError, "a dict, not a scalar"),
    "gradient of nothing": (lambda: grad(lambda x: None)(VECTOR), ValueError, "not a scalar"),
    "cotangent of another name": (
        lambda: vjp(lambda x: {"a": x}, VECTOR)[1]({"b": VECTOR}), ValueError, r"\['b'\].*\['a'\].*one for each"
    ),
    "float()": (lambda: grad(lambda x: float(x[0]))(VECTOR), TypeError, r"float\(\).*return the array"),
    "int()": (lambda: grad(lambda x: int(x[0]))(VECTOR), TypeError, "drop its derivative"),
    "asarray": (lambda: grad(lambda x: np.asarray(x))(VECTOR), TypeError, r"\(3,\).*outside the transform"),
    "index": (lambda: grad(lambda x: VECTOR[x[0]])(VECTOR), TypeError, "plain ndarray"),
    "function without a rule": (lambda: grad(np.sin)(VECTOR), TypeError, "numpy.sin has no.*@primitive"),
    "ufunc method": (lambda: grad(np.add.reduce)(VECTOR), TypeError, "numpy.add.reduce has no"),
    "library function": (lambda: grad(np.linalg.norm)(VECTOR), TypeError, "numpy.norm has no.*@primitive"),
    "integer argument": (lambda: grad(ops.sum)(np.arange(3)), TypeError, r"\[0\].*integers.*argnums"),
    "boolean argument": (lambda: grad(ops.sum)(np.array([True])), TypeError, "integers.*float64"),
    "half precision": (lambda: grad(ops.sum)(np.ones(2, np.float16)), TypeError, "float16 is not supported.*float32"),
    "complex argument": (lambda: grad(ops.sum)(np.ones(2) * 1j), TypeError, "complex128 is not supported"),
    "a word": (lambda: grad(ops.sum)("word"), TypeError, "not supported"),
    "a deep leaf": (lambda: grad(lambda p: p)({"a": [VECTOR, 1]}), TypeError, r"\[0\]\['a'\]\[1\]: integers"),
    "tangent of an integer": (lambda: jvp(ops.sum, [np.arange(3)], [VECTOR]), TypeError, r"primals\[0\]: integers"),
    "gradient of a vector": (lambda: grad(ops.exp)(VECTOR), ValueError, r"shape \(3,\), not a scalar.*vjp"),
    "missing cotangent": (lambda: vjp(lambda x: (x, x), VECTOR)[1]([VECTOR]), ValueError, "one for each array"),
    "cotangent's shape": (lambda: vjp(ops.exp, VECTOR)[1](VECTOR[:2]), ValueError, r"shape \(2,\).*\(3,\)"),
    "missing tangent": (lambda: jvp(ops.add, [VECTOR, VECTOR], [VECTOR]), ValueError, "one tangent for each"),
    "tangent's shape": (lambda: jvp(ops.exp, [VECTOR], [VECTOR[:2]]), ValueError, r"tangents\[0\].*\(2,\).*\(3,\)"),
    "tangent's structure": (
        lambda: jvp(lambda p: p["a"], [{"a": VECTOR}], [{"b": VECTOR}]), ValueError, r"\['b'\].*\['a'\]"
    ),
    "vector product": (lambda: ops.matmul(VECTOR, VECTOR), ValueError, r"\(3,\) and \(3,\).*reshape"),
    "heads that do not group": (
        lambda: ops.attention(np.ones((3, 2, 2)), np.ones((2, 2, 2)), np.ones((2, 2, 2)), scale=1.0),
        ValueError,
        r"q \(3, 2, 2\).*G dividing H",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_do(name: str) -> None:
    action, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_a_released_pullback_says_so() -> None:
    _, pullback = vjp(ops.exp, VECTOR)
    pullback(VECTOR, release=True)
    with pytest.raises(RuntimeError, match=r"released.*release=True"):
        pullback(VECTOR)


def test_a_rule_can_only_keep_what_it_can_name() -> None:
    op = primitive(lambda x, *, power: x**power)
    with pytest.raises(TypeError, match="'norm', which it cannot keep; choose from out, power, x, x_shape"):
        op.vjp("x")(lambda g, norm: g)
    with pytest.raises(TypeError, match="'norm', which it cannot keep"):
        op.jvp("x")(lambda dx, norm: dx)
    with pytest.raises(TypeError, match="no argument 'y'; choose from x"):
        op.vjp("y")(lambda g: g)
    with pytest.raises(TypeError, match="no argument 'y'; choose from x"):
        op.jvp("y")(lambda dy: dy)
    with pytest.raises(TypeError, match=r"no reverse rule for 'x'.*vjp"):
        vjp(lambda x: op(x, power=2), VECTOR)
    with pytest.raises(TypeError, match=r"no forward rule for 'x'.*jvp"):
        jvp(lambda x: op(x, power=2), [VECTOR], [VECTOR])
    with pytest.raises(TypeError, match="needs an unfused twin"):
        primitive(lambda x: (x, x), residuals=("r",))
    with pytest.raises(TypeError, match="'r', which it cannot keep"):  # a residual is not there in forward mode
        primitive(lambda x: (x, x), residuals=("r",), twin=lambda x: x).jvp("x")(lambda dx, r: dx)


def test_control_flow_may_look_at_values() -> None:
    def f(x: Any) -> Any:
        if x == 1.0:
            return x * 5.0
        return x * 2.0 if x > 0 else -x

    assert [grad(f)(np.array(s)) for s in (3.0, -3.0, 1.0)] == [2, -1, 5]
    assert [grad(lambda x: f(primal(x)) + x)(np.array(s)) for s in (3.0, -3.0)] == [1, 1]
