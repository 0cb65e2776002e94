"""Shape and indexing: nothing here keeps an array, only shapes and indices."""

import numpy as np

from lockref.autodiff.primitive import primitive


@primitive
def reshape(x, *, shape):
    """The same elements in another shape (one entry may be −1)."""
    return np.reshape(x, shape)


reshape.vjp("x")(lambda g, x_shape: np.reshape(g, x_shape))
reshape.jvp(lambda dx, shape: np.reshape(dx, shape))


@primitive
def transpose(x, *, axes=None):
    """Axes permuted (default: reversed)."""
    return np.transpose(x, axes)


@transpose.vjp("x")
def _(g, axes):
    return np.transpose(g, None if axes is None else tuple(int(i) for i in np.argsort(np.mod(axes, len(axes)))))


transpose.jvp(lambda dx, axes: np.transpose(dx, axes))


@primitive
def broadcast_to(x, *, shape):
    """x stretched to a larger shape, by NumPy's rules."""
    return np.broadcast_to(x, shape)


broadcast_to.vjp("x")(lambda g: g)  # the tape sums over the stretched axes
broadcast_to.jvp(lambda dx, shape: np.broadcast_to(dx, shape))


@primitive
def getitem(x, *, key):
    """x[key] for slices, integers and integer arrays."""
    return x[key]


getitem.vjp("x")(lambda g, key, x_shape: scatter(g, key=key, shape=x_shape))
getitem.jvp(lambda dx, key: dx[key])


@primitive
def scatter(x, *, key, shape):
    """Zeros of `shape` with x added at [key]; indices that occur twice add up."""
    out = np.zeros_like(x, shape=shape)
    if _has_array(key):
        np.add.at(out, key, x)
    else:
        out[key] = x
    return out


scatter.vjp("x")(lambda g, key: g[key])
scatter.jvp(lambda dx, key, shape: scatter(dx, key=key, shape=shape))


def _has_array(key):
    return any(isinstance(k, np.ndarray | list) for k in (key if isinstance(key, tuple) else (key,)))


@primitive
def take(x, *, indices):
    """Rows x[indices]: an embedding table looked up by token."""
    return x[indices]


take.vjp("x")(lambda g, indices, x_shape: scatter(g, key=indices, shape=x_shape))
take.jvp(lambda dx, indices: dx[indices])


@primitive
def join(x, y, *, axis):
    """x and y concatenated along one axis."""
    return np.concatenate((x, y), axis)


@join.vjp("x")
def _(g, x_shape, axis):
    return g[_along(axis, len(x_shape), slice(None, x_shape[axis]))]


@join.vjp("y")
def _(g, x_shape, axis):
    return g[_along(axis, len(x_shape), slice(x_shape[axis], None))]


@join.jvp("x")
def _(dx, y_shape, axis):
    return np.concatenate((dx, np.zeros(y_shape, dx.dtype)), axis)


@join.jvp("y")
def _(dy, x_shape, axis):
    return np.concatenate((np.zeros(x_shape, dy.dtype), dy), axis)


def _along(axis, ndim, part):
    key = [slice(None)] * ndim
    key[axis] = part
    return tuple(key)


def concatenate(arrays, axis=0):
    """Arrays joined along one axis, pairwise, so that n arrays are copied log₂ n times."""
    if len(arrays) == 1:
        return arrays[0]
    middle = len(arrays) // 2
    return join(concatenate(arrays[:middle], axis), concatenate(arrays[middle:], axis), axis=axis)
