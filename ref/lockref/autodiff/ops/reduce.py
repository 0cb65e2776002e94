"""Reductions over axes."""

import numpy as np

from lockref.autodiff.array import primal
from lockref.autodiff.primitive import primitive


@primitive
def sum(x, *, axis=None, keepdims=False):
    """Σ x over the axes given (default: all)."""
    return np.sum(x, axis=axis, keepdims=keepdims)


sum.vjp("x")(lambda g, x_shape, axis, keepdims: np.broadcast_to(_restore(g, x_shape, axis, keepdims), x_shape))
sum.jvp(lambda dx, axis, keepdims: np.sum(dx, axis=axis, keepdims=keepdims))


@primitive
def mean(x, *, axis=None, keepdims=False):
    """Mean of x over the axes given (default: all)."""
    return np.mean(x, axis=axis, keepdims=keepdims)


@mean.vjp("x")
def _(g, x_shape, axis, keepdims):
    g = _restore(g, x_shape, axis, keepdims)
    count = int(np.prod(x_shape)) // int(np.prod(g.shape))
    return np.broadcast_to(g / count, x_shape)


mean.jvp(lambda dx, axis, keepdims: np.mean(dx, axis=axis, keepdims=keepdims))


@primitive
def max(x, *, axis=None, keepdims=False):
    """Largest entry over the axes given; entries that tie share the cotangent equally."""
    return np.max(x, axis=axis, keepdims=keepdims)


def _winners(x, out, axis, keepdims):
    """Weights 1/n on the n entries that equal the maximum, 0 elsewhere."""
    x, out = primal(x), primal(out)
    hit = (x == _restore(out, x.shape, axis, keepdims)).astype(x.dtype)
    return hit / np.sum(hit, axis=axis, keepdims=True)


@max.vjp("x")
def _(g, x, out, x_shape, axis, keepdims):
    return _restore(g, x_shape, axis, keepdims) * _winners(x, out, axis, keepdims)


@max.jvp
def _(dx, x, out, axis, keepdims):
    return np.sum(dx * _winners(x, out, axis, keepdims), axis=axis, keepdims=keepdims)


def _restore(g, shape, axis, keepdims):
    """Put the summed axes back, with length 1."""
    if keepdims:
        return g
    axes = range(len(shape)) if axis is None else np.atleast_1d(axis) % len(shape)
    return np.reshape(g, tuple(1 if i in axes else n for i, n in enumerate(shape)))
