"""The low-rank residual block of a DLR-Net, fused: x + B σ(A N(x)), with and without the norm N."""

from typing import Any

import numpy as np

from lockref.autodiff.ops.activations import WITH_SLOPE, gelu_erf, gelu_tanh, relu, silu, tanh
from lockref.autodiff.ops.fused import normalize, row_dot, tiles
from lockref.autodiff.ops.linalg import matmul
from lockref.autodiff.ops.shape import transpose
from lockref.autodiff.primitive import primitive

ACTIVATIONS = {op.name: op for op in (silu, gelu_erf, gelu_tanh, relu, tanh)}


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def _plus(fresh, x):
    """fresh + x, written over `fresh`: a block makes one new array of d columns, not two."""
    fresh += x
    return fresh


def _pull_b(g, h, activation):
    return _rows(g).T @ _rows(ACTIVATIONS[activation].impl(h))


def _twin(x, a, b, *, activation):
    return x + matmul(ACTIVATIONS[activation](matmul(x, transpose(a))), transpose(b))


@primitive(residuals=("h",), twin=_twin)
def low_rank(x, a, b, *, activation):
    """x + σ(x aᵀ) bᵀ with x (…, d), a (r, d), b (d, r); keeps h = x aᵀ, and x only where a trains."""
    h = np.matmul(x, a.T)
    return _plus(np.matmul(ACTIVATIONS[activation].impl(h), b.T), x), h


@low_rank.vjp("x")
def _(g, a, b, h, activation):
    return pull_x(g, a, b, WITH_SLOPE[activation](h)[1])


@low_rank.vjp("a")
def _(g, x, b, h, activation):
    return _rows(np.matmul(g, b) * WITH_SLOPE[activation](h)[1]).T @ _rows(x)


@low_rank.vjp("b")
def _(g, h, activation):
    return _pull_b(g, h, activation)


@low_rank.vjp("x", "a", "b")
def _(g, x, a, b, h, activation):
    return pull(g, x, a, b, *WITH_SLOPE[activation](h))


def pull_x(g: Any, a: Any, b: Any, slope: Any) -> Any:
    """Cotangent of x for slope = σ'(h): g + (g b ∘ σ'(h)) a."""
    return _plus(np.matmul(np.matmul(g, b) * slope, a), g)


def pull(g: Any, x: Any, a: Any, b: Any, value: Any, slope: Any) -> Any:
    """Cotangents of x, a and b for value = σ(h) and slope = σ'(h)."""
    gh = np.matmul(g, b) * slope
    return _plus(np.matmul(gh, a), g), _rows(gh).T @ _rows(x), _rows(g).T @ _rows(value)


def _normed_twin(x, a, b, *, activation, eps):
    return x + matmul(ACTIVATIONS[activation](matmul(normalize.twin(x, eps=eps), transpose(a))), transpose(b))


@primitive(residuals=("h", "rstd"), twin=_normed_twin)
def normed_low_rank(x, a, b, *, activation, eps):
    """x + σ(N(x) aᵀ) bᵀ with N(x) = x / √(mean(x²) + eps).

    N(x) aᵀ = rstd · (x aᵀ): scaling and the norm's gradient touch r columns instead of d.
    """
    rstd = 1 / np.sqrt(row_dot(x, x) / x.shape[-1] + eps)
    h = np.matmul(x, a.T)
    h *= rstd
    return _plus(np.matmul(ACTIVATIONS[activation].impl(h), b.T), x), h, rstd


@normed_low_rank.vjp("x")
def _(g, x, a, b, h, rstd, activation):
    return pull_normed_x(g, x, a, b, h, rstd, WITH_SLOPE[activation](h)[1])


@normed_low_rank.vjp("a")
def _(g, x, b, h, rstd, activation):
    return _rows(np.matmul(g, b) * WITH_SLOPE[activation](h)[1] * rstd).T @ _rows(x)


@normed_low_rank.vjp("b")
def _(g, h, activation):
    return _pull_b(g, h, activation)


@normed_low_rank.vjp("x", "a", "b")
def _(g, x, a, b, h, rstd, activation):
    return pull_normed(g, x, a, b, h, rstd, *WITH_SLOPE[activation](h))


def pull_normed_x(g: Any, x: Any, a: Any, b: Any, h: Any, rstd: Any, slope: Any) -> Any:
    """Cotangent of x for slope = σ'(h)."""
    return _through_norm(g, np.matmul(g, b) * slope, x, a, h, rstd)[0]


def pull_normed(g: Any, x: Any, a: Any, b: Any, h: Any, rstd: Any, value: Any, slope: Any) -> Any:
    """Cotangents of x, a and b for value = σ(h) and slope = σ'(h)."""
    gx, scaled = _through_norm(g, np.matmul(g, b) * slope, x, a, h, rstd)
    return gx, _rows(scaled).T @ _rows(x), _rows(g).T @ _rows(value)


def _through_norm(g, gh, x, a, h, rstd):
    """Cotangents of x and of x aᵀ. h = rstd · (x aᵀ), so the norm's share is −x rstd²/d · Σ gh∘h."""
    along = rstd * rstd * (row_dot(gh, h) / x.shape[-1])
    gh = gh * rstd
    out = _plus(np.matmul(gh, a), g)
    for rows in tiles(*_rows(out).shape):  # a few rows at a time: no second array of d columns
        _rows(out)[rows] -= _rows(x)[rows] * _rows(along)[rows]
    return out, gh
