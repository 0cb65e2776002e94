"""Fused operations: whole steps of a transformer with hand-made reverse rules that keep little.

Each names its unfused twin, the same function in small operations: the twin defines it, gives its
forward mode, and shows what an engine without fusion would have to store.
"""

from typing import Any

import numpy as np

from lockref.autodiff.array import Traced
from lockref.autodiff.ops import reduce
from lockref.autodiff.ops.activations import exp, log, sigmoid, silu
from lockref.autodiff.ops.elementwise import rsqrt
from lockref.autodiff.ops.shape import concatenate, reshape
from lockref.autodiff.primitive import primitive


def _normalize_twin(x, *, eps):
    return x * rsqrt(reduce.mean(x * x, axis=-1, keepdims=True) + eps)


@primitive(residuals=("rstd",), twin=_normalize_twin)
def normalize(x, *, eps):
    """x / √(mean(x²) + eps) along the last axis: RMSNorm without a gain."""
    rstd = 1 / np.sqrt(_mean_square(x) + eps)
    return x * rstd, rstd


@normalize.vjp("x")
def _(g, x, rstd):
    return rstd * (g - x * (rstd * rstd * _mean_product(g, x)))


def _rms_norm_twin(x, gain, *, eps):
    return gain * _normalize_twin(x, eps=eps)


@primitive(residuals=("rstd",), twin=_rms_norm_twin)
def rms_norm(x, gain, *, eps):
    """gain ∘ x / √(mean(x²) + eps) along the last axis (Zhang & Sennrich, arXiv 1910.07467)."""
    rstd = 1 / np.sqrt(_mean_square(x) + eps)
    return x * rstd * gain, rstd


@rms_norm.vjp("x")
def _(g, x, gain, rstd):
    g = g * gain
    return rstd * (g - x * (rstd * rstd * _mean_product(g, x)))


@rms_norm.vjp("gain")
def _(g, x, rstd):
    return g * (x * rstd)


@rms_norm.vjp("x", "gain")
def _(g, x, gain, rstd):
    gx, g_gain = np.empty(x.shape, np.result_type(g, x)), np.zeros(x.shape[-1], np.result_type(g, x))
    flat = [y.reshape(-1, y.shape[-1]) for y in (gx, g, x, rstd)]
    for rows in tiles(*flat[0].shape):
        into, g, x, rstd = (y[rows] for y in flat)
        normed = x * rstd
        product = g * normed
        g_gain += product.sum(axis=0)
        product *= gain
        np.multiply(g, gain, out=into)
        into -= normed * (product.sum(axis=-1, keepdims=True) / x.shape[-1])
        into *= rstd
    return gx, g_gain


def tiles(count, width=1):
    """Slices of rows, a few at a time, so that what is computed of them stays in the cache."""
    size = max(1, 16384 // width)
    return (slice(start, start + size) for start in range(0, count, size))


def _mean_square(x):
    return _mean_product(x, x)


def _mean_product(x, y):
    return row_dot(x, y) / x.shape[-1]


def row_dot(x, y):
    """Σ x∘y along the last axis, which stays. The cotangent in a rule may itself be traced."""
    if isinstance(x, Traced) or isinstance(y, Traced):
        return reduce.sum(x * y, axis=-1, keepdims=True)
    return np.vecdot(x.conj(), y)[..., None]  # vecdot conjugates its first operand


def rope_tables(
    positions: Any, head_dim: int, theta: float, dtype: Any = np.float64
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """cos and sin of position · theta^(−2i/head_dim), each of shape (positions, head_dim/2)."""
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.outer(positions, frequencies)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def _rope_twin(x, *, cos, sin):
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@primitive(twin=_rope_twin)
def rope(x, *, cos, sin):
    """Rotate plane (i, i + c/2) of x (…, T, c) by the angle of each position; cos, sin (T, c/2).

    Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split layout of Qwen3.
    """
    return _rotate(x, cos, sin)


rope.vjp("x")(lambda g, cos, sin: rope(g, cos=cos, sin=-sin))


def _rotate(x, cos, sin):
    half = x.shape[-1] // 2
    out = np.empty(x.shape, np.result_type(x, cos))
    first, second = x[..., :half], x[..., half:]
    out[..., :half] = first * cos - second * sin
    out[..., half:] = second * cos + first * sin
    return out


def _swiglu_twin(z, u):
    return silu(z) * u


@primitive(twin=_swiglu_twin)
def swiglu(z, u):
    """silu(z) ∘ u (Shazeer, arXiv 2002.05202)."""
    return silu.impl(z) * u


@swiglu.vjp("z")
def _(g, z, u):
    return silu.vjps["x",].function(g * u, z)


@swiglu.vjp("u")
def _(g, z):
    return g * silu.impl(z)


@swiglu.vjp("z", "u")
def _(g, z, u):
    gz, gu = np.empty(g.shape, g.dtype), np.empty(g.shape, g.dtype)
    flat = [np.broadcast_to(y, g.shape, subok=True).reshape(-1) for y in (g, z, u)]
    for part in tiles(g.size):
        g, z, u = (y[part] for y in flat)
        s = sigmoid.impl(z)
        swish = z * s
        np.multiply(g, swish, out=gu.reshape(-1)[part])
        swish *= 1 - s
        swish += s  # silu'(z)
        swish *= u
        np.multiply(g, swish, out=gz.reshape(-1)[part])
    return gz, gu


def _cross_entropy_twin(logits, *, targets):
    shifted = logits - reduce.max(logits, axis=-1, keepdims=True)
    norm = log(reduce.sum(exp(shifted), axis=-1))
    picked = reshape(shifted, shape=(-1, shifted.shape[-1]))[np.arange(targets.size), targets.reshape(-1)]
    return reduce.mean(reshape(norm, shape=(-1,)) - picked)


@primitive(residuals=("p",), twin=_cross_entropy_twin)
def cross_entropy(logits, *, targets):
    """Mean over tokens of −ln softmax(logits)[target]; logits (…, V), integer targets (…), result in nats."""
    shifted = logits - np.max(np.real(logits), axis=-1, keepdims=True)
    p = np.exp(shifted)
    total = np.sum(p, axis=-1, keepdims=True)
    p /= total
    picked = np.take_along_axis(shifted, targets[..., None], axis=-1)
    return np.mean(np.log(total) - picked), p


@cross_entropy.vjp("logits")
def _(g, p, targets):
    if isinstance(g, Traced):
        return g * cross_entropy.vjps["logits",].function(np.ones((), p.dtype), p, targets)
    out = p * (g / targets.size)
    index = targets[..., None]
    np.put_along_axis(out, index, np.take_along_axis(out, index, -1) - g / targets.size, axis=-1)
    return out
