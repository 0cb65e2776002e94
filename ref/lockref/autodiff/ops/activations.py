"""Elementwise functions of one array: exponentials and the activations of neural networks."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import erf as scipy_erf

from lockref.autodiff.array import primal
from lockref.autodiff.primitive import primitive


@primitive
def exp(x):
    """eˣ."""
    return np.exp(x)


exp.vjp("x")(lambda g, out: g * out)
exp.jvp(lambda dx, out: dx * out)


@primitive
def log(x):
    """ln x for x > 0."""
    return np.log(x)


log.vjp("x")(lambda g, x: g / x)
log.jvp(lambda dx, x: dx / x)


@primitive
def tanh(x):
    """tanh x."""
    return np.tanh(x)


@tanh.vjp("x")
def _(g, out):
    return g * (1 - out * out)


@tanh.jvp
def _(dx, x):
    return dx * (4 * sigmoid(2 * x) * sigmoid(-2 * x))  # 1/cosh², which cannot overflow


@primitive
def sigmoid(x):
    """1 / (1 + e⁻ˣ)."""
    with np.errstate(over="ignore"):  # e⁻ˣ = inf gives the right limit, 0
        return 1 / (1 + np.exp(-x))


sigmoid.vjp("x")(lambda g, out: g * out * (1 - out))
sigmoid.jvp(lambda dx, x: dx * sigmoid(x) * sigmoid(-x))


@primitive
def silu(x):
    """x · sigmoid(x) (also called swish)."""
    return x * sigmoid.impl(x)


@silu.vjp("x")
def _(g, x):
    s = sigmoid(x)
    return g * (s * (1 + x * (1 - s)))


@silu.jvp
def _(dx, x):
    return dx * sigmoid(x) + dx * x * sigmoid(x) * sigmoid(-x)


@primitive
def erf(x):
    """2/√π ∫₀ˣ e^(−t²) dt."""
    return scipy_erf(x)


# Constants are Python floats: a NumPy scalar of double precision would turn float32 arrays into float64.
_LOG_SLOPE = math.log(2 / math.sqrt(math.pi))  # of the slope at 0
_SQRT_HALF = math.sqrt(0.5)

erf.vjp("x")(lambda g, x: g * np.exp(_LOG_SLOPE - x * x))
erf.jvp(lambda dx, x: dx * np.exp(-x * x) * (2 / math.sqrt(math.pi)))


@primitive
def relu(x):
    """max(x, 0); the derivative at 0 is 0."""
    return np.where(np.real(x) <= 0, 0, x)  # not-a-number stays what it is


relu.vjp("x")(lambda g, out: g * (primal(out) > 0))
relu.jvp(lambda dx, x: np.where(primal(x) > 0, dx, 0))


def _gelu_erf_twin(x):
    return 0.5 * x * (1 + erf(x * _SQRT_HALF))


@primitive(twin=_gelu_erf_twin)
def gelu_erf(x):
    """x Φ(x) with the normal distribution function Φ(x) = (1 + erf(x/√2)) / 2."""
    return 0.5 * x * (1 + scipy_erf(x * _SQRT_HALF))


@gelu_erf.vjp("x")
def _(g, x):
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return g * (0.5 * (1 + scipy_erf(x * _SQRT_HALF)) + x * density)


TANH_GAIN, TANH_CUBE = math.sqrt(2 / math.pi), 0.044715  # Hendrycks & Gimpel, arXiv 1606.08415


def _gelu_tanh_twin(x):
    return 0.5 * x * (1 + tanh(TANH_GAIN * (x + TANH_CUBE * x * x * x)))


@primitive(twin=_gelu_tanh_twin)
def gelu_tanh(x):
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), the tanh approximation of gelu."""
    return 0.5 * x * (1 + np.tanh(TANH_GAIN * (x + TANH_CUBE * x * x * x)))


@gelu_tanh.vjp("x")
def _(g, x):
    t = np.tanh(TANH_GAIN * (x + TANH_CUBE * x * x * x))
    slope = TANH_GAIN * (1 + 3 * TANH_CUBE * x * x)
    return g * 0.5 * (1 + t + x * (1 - t * t) * slope)


# Value and slope of an array, for rules that read both: what the two share is computed once, and the value comes out in
# the same bits as from the operation above. Traced arrays pass through.
def _silu_with_slope(x):
    s = sigmoid(x)
    y = x * s
    return y, s + y * (1 - s)


def _gelu_erf_with_slope(x):
    twice = 1 + erf(x * _SQRT_HALF)
    return 0.5 * x * twice, 0.5 * twice + x * (exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


def _gelu_tanh_with_slope(x):
    t = tanh(TANH_GAIN * (x + TANH_CUBE * x * x * x))
    return 0.5 * x * (1 + t), 0.5 * (1 + t + x * (1 - t * t) * (TANH_GAIN * (1 + 3 * TANH_CUBE * x * x)))


def _relu_with_slope(x):
    y = relu(x)
    return y, primal(y) > 0


def _tanh_with_slope(x):
    y = tanh(x)
    return y, 1 - y * y


WITH_SLOPE: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "silu": _silu_with_slope, "gelu_erf": _gelu_erf_with_slope, "gelu_tanh": _gelu_tanh_with_slope,
    "relu": _relu_with_slope, "tanh": _tanh_with_slope,
}  # fmt: skip
