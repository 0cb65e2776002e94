"""Matrix products."""

import numpy as np

from lockref.autodiff.primitive import primitive


@primitive
def matmul(x, y):
    """x @ y for matrices, batched over leading axes as NumPy does (no one-dimensional operands)."""
    if np.ndim(x) < 2 or np.ndim(y) < 2:
        raise ValueError(
            f"matmul: shapes {np.shape(x)} and {np.shape(y)}; both need two axes or more, reshape vectors to matrices"
        )
    return np.matmul(x, y)


@matmul.vjp("x")
def _(g, y):
    return np.matmul(g, np.swapaxes(y, -1, -2))


@matmul.vjp("y")
def _(g, x, y_shape):
    if len(y_shape) == 2 and np.ndim(x) > 2:  # a weight shared by the batch: one large product instead of many
        return np.matmul(np.transpose(_rows(x)), _rows(g))
    return np.matmul(np.swapaxes(x, -1, -2), g)


matmul.jvp("x")(lambda dx, y: np.matmul(dx, y))
matmul.jvp("y")(lambda dy, x: np.matmul(x, dy))


def _rows(x):
    return np.reshape(x, (-1, x.shape[-1]))
