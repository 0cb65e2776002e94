"""NumPy's own functions and operators on traced arrays: every one that has a rule computes and differentiates."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockref.autodiff import Traced, grad, vjp
from lockref.autodiff.gradcheck import gradcheck


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


X, Y = np.array([[0.5, 2.0, 1.5], [0.7, 0.2, 3.0]]), np.array([1.2, 0.4, 2.5])
EXPRESSIONS: dict[Any, Callable[[Any, Any], Any]] = {
    np.add: lambda x, y: np.add(x, y) + (1 + x),
    np.subtract: lambda x, y: np.subtract(x, y) + (1 - x),
    np.multiply: lambda x, y: np.multiply(x, y) + 2 * x,
    np.divide: lambda x, y: np.divide(x, y) + 2 / x,
    np.negative: lambda x, y: np.negative(x) * -y,
    np.power: lambda x, y: np.power(x, 3) + x**-1.5 + x**y + 2.0**x + Y**x + x**Y,
    np.sqrt: lambda x, y: np.sqrt(x) * y,
    np.maximum: lambda x, y: np.maximum(x, y) + np.maximum(1.0, y),
    np.exp: lambda x, y: np.exp(x) * y,
    np.log: lambda x, y: np.log(x) * y,
    np.tanh: lambda x, y: np.tanh(x) * y,
    np.cosh: lambda x, y: np.cosh(x) * y,
    np.square: lambda x, y: np.square(x) * y,
    np.matmul: lambda x, y: np.matmul(x, x.T) + X @ x.T + x @ X.T,
    np.sum: lambda x, y: np.sum(x) * np.sum(x, axis=0) * x.sum(axis=1, keepdims=True),
    np.mean: lambda x, y: np.mean(x) * np.mean(x, axis=0) * x.mean(axis=1, keepdims=True),
    np.max: lambda x, y: np.max(x) * np.max(x, axis=0) * x.max(axis=1, keepdims=True),
    np.reshape: lambda x, y: np.reshape(x, (3, 2)) * x.reshape(3, -1) * x.reshape((3, 2)),
    np.broadcast_to: lambda x, y: np.broadcast_to(y, (2, 3)) * x,
    np.where: lambda x, y: np.where(X > 1, x, y) + np.where(X > 2, 1.0, y),
    np.concatenate: lambda x, y: np.concatenate([x, y[None], X], axis=0) + np.concatenate((x, X[:, :1]), axis=1).sum(),
    np.transpose: lambda x, y: np.transpose(x) @ x.transpose(1, 0).T + np.transpose(x, (1, 0)).sum(),
    np.swapaxes: lambda x, y: np.swapaxes(x, 0, -1) * x.T,
    np.stack: lambda x, y: np.stack([x[0], y, X[1]], axis=-1).sum() * np.stack([x, X]),
    np.equal: lambda x, y: x * (x == 99) + y * np.equal(99, y),
    np.not_equal: lambda x, y: x * (x != 99) + y * np.not_equal(99, y),
    np.less: lambda x, y: x * (x < 1) + y * np.less(1.0, y) + np.less(Y, x) * x,
    np.less_equal: lambda x, y: x * (x <= 1.5) + y * np.less_equal(x, y),
    np.greater: lambda x, y: x * (x > y) + y * np.greater(x, 1.0),
    np.greater_equal: lambda x, y: x * (x >= 1.5) + y * np.greater_equal(x, y),
    np.shape: lambda x, y: x * np.shape(x)[1] * x.shape[0] * len(x) * x.size,
    np.ndim: lambda x, y: x * np.ndim(x) * y.ndim,
    "[]": lambda x, y: x[0] * x[1, ::-1] * x[..., None, 1:2][0] * x[X > 1][0] * sum(row[0] for row in x),
}


def test_every_numpy_function_with_a_rule_is_tested() -> None:
    assert set(Traced.ufuncs) | set(Traced.functions) == set(EXPRESSIONS) - {"[]"}


@pytest.mark.parametrize("function", EXPRESSIONS, ids=lambda f: getattr(f, "__name__", f))
def test_numpy_functions_and_operators(function: Any, rng: np.random.Generator) -> None:
    f = EXPRESSIONS[function]
    assert np.allclose(vjp(f, X, Y)[0], f(X, Y), rtol=64 * 2**-52)  # x ** y is exp(y log x), |y log x| < 4
    gradcheck(f, X, Y, rng=rng)
    gradcheck(grad(lambda x, y: np.sum(f(x, y)), (0, 1)), X, Y, rng=rng, draws=2)
