"""Value and slope computed together: the operation's own bits, and its own rule to round-off."""

from typing import Any

import numpy as np
import pytest

from lockref.autodiff import jvp, ops, vjp
from lockref.autodiff.ops import activations
from lockref.autodiff.ops.activations import WITH_SLOPE

LARGEST = 30.0  # 1 ± 1e-13 and 0 beyond it, for all of them
each_activation = pytest.mark.parametrize("name", ops.ACTIVATIONS)


def points(dtype: Any) -> Any:
    """A fine grid, both zeros, the smallest and the largest numbers, infinities left out."""
    special = [0.0, -0.0, np.finfo(dtype).tiny, -np.finfo(dtype).tiny, 1e4, -1e4]
    return np.concatenate([np.linspace(-LARGEST, LARGEST, 4001), special]).astype(dtype)


def slope_gap(name: str, dtype: Any) -> float:
    """Largest |slope − the operation's own rule| in units of the round-off that either commits.

    Both are sums of products of size at most S = 1 + |x| |σ'| … ≤ 1 + |x| on the way (x times a factor of at most 1),
    a dozen roundings each, arguments of exp and tanh with an error of eps |x| (1 + x²) times a slope of at most 1.
    """
    x = points(dtype)
    _, pullback = vjp(ops.ACTIVATIONS[name], x)
    want = pullback(np.ones_like(x))
    got = WITH_SLOPE[name](x)[1]
    size = np.minimum(1 + np.abs(x), 40.0) ** 2
    return float(np.max(np.abs(got - want) / (24 * np.finfo(dtype).eps * size)))


def test_every_activation_has_one() -> None:
    assert WITH_SLOPE.keys() == ops.ACTIVATIONS.keys()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_activation
def test_the_value_has_the_bits_of_the_operation(name: str, dtype: Any) -> None:
    x = points(dtype)
    value, slope = WITH_SLOPE[name](x)
    assert value.dtype == dtype and np.array_equal(value, ops.ACTIVATIONS[name](x))
    assert (slope * x).dtype == dtype  # relu's slope is a truth value


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_activation
def test_the_slope_is_that_of_the_operations_own_rule(name: str, dtype: Any) -> None:
    assert slope_gap(name, dtype) <= 1


@pytest.mark.parametrize("name", ["silu", "gelu_erf", "gelu_tanh", "tanh"])
def test_a_slope_off_by_a_thousandth_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = WITH_SLOPE[name]
    monkeypatch.setitem(activations.WITH_SLOPE, name, lambda x: (honest(x)[0], honest(x)[1] * 1.001))
    assert slope_gap(name, np.float32) > 1


@each_activation
def test_traced_arrays_pass_through(name: str) -> None:
    x = np.array([-1.5, 0.3, 2.0])
    _, tangent = jvp(lambda x: WITH_SLOPE[name](x)[0], (x,), (np.ones(3),))
    np.testing.assert_allclose(tangent, WITH_SLOPE[name](x)[1] * 1.0, rtol=1e-14)
