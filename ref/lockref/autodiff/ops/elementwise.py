"""Arithmetic, elementwise with NumPy broadcasting (the tape undoes it)."""

import numpy as np

from lockref.autodiff.array import primal
from lockref.autodiff.primitive import primitive


@primitive
def add(x, y):
    """x + y."""
    return x + y


add.vjp("x")(lambda g: g)
add.vjp("y")(lambda g: g)
add.jvp("x")(lambda dx: dx)
add.jvp("y")(lambda dy: dy)


@primitive
def subtract(x, y):
    """x − y."""
    return x - y


subtract.vjp("x")(lambda g: g)
subtract.vjp("y")(lambda g: -g)
subtract.jvp("x")(lambda dx: dx)
subtract.jvp("y")(lambda dy: -dy)


@primitive
def multiply(x, y):
    """x · y."""
    return x * y


multiply.vjp("x")(lambda g, y: g * y)
multiply.vjp("y")(lambda g, x: g * x)
multiply.jvp("x")(lambda dx, y: y * dx)
multiply.jvp("y")(lambda dy, x: x * dy)


@primitive
def divide(x, y):
    """x / y."""
    return x / y


divide.vjp("x")(lambda g, y: g / y)
divide.vjp("y")(lambda g, y, out: -g * out / y)


@divide.vjp("x", "y")
def _(g, y, out):
    gx = g / y
    return gx, -gx * out


divide.jvp("x")(lambda dx, y: dx / y)
divide.jvp("y")(lambda dy, x, y: -x * dy / (y * y))


@primitive
def negative(x):
    """−x."""
    return -x


negative.vjp("x")(lambda g: -g)
negative.jvp(lambda dx: -dx)


@primitive
def power(x, *, exponent):
    """x ** exponent for a real constant exponent (x > 0 unless the exponent is an integer)."""
    return x**exponent


@power.vjp("x")
def _(g, x, exponent):
    return g * exponent * power(x, exponent=exponent - 1)


@power.jvp
def _(dx, x, exponent):
    return dx * (exponent * power(x, exponent=exponent - 1))


@primitive
def sqrt(x):
    """√x for x > 0."""
    return np.sqrt(x)


sqrt.vjp("x")(lambda g, out: g / (2 * out))
sqrt.jvp(lambda dx, x: 0.5 * dx / np.sqrt(x))


@primitive
def rsqrt(x):
    """1/√x for x > 0; keeps its result, not x."""
    return 1 / np.sqrt(x)


rsqrt.vjp("x")(lambda g, out: -0.5 * g * out * out * out)
rsqrt.jvp(lambda dx, x: -0.5 * dx / (x * np.sqrt(x)))


@primitive
def maximum(x, y):
    """max(x, y); where the two tie, each gets half of the cotangent."""
    return np.where(np.real(x) >= np.real(y), x, y)


def _share(x, y):
    """1 where x > y, ½ where they tie, 0 elsewhere."""
    return (np.sign(np.real(primal(x) - primal(y))) + 1) / 2


maximum.vjp("x")(lambda g, x, y: g * _share(x, y))
maximum.vjp("y")(lambda g, x, y: g * _share(y, x))


@maximum.vjp("x", "y")
def _(g, x, y):
    gx = g * _share(x, y)
    return gx, g - gx


maximum.jvp("x")(lambda dx, x, y: _share(x, y) * dx)
maximum.jvp("y")(lambda dy, x, y: _share(y, x) * dy)


@primitive
def where(x, y, *, condition):
    """x where the condition is true, y elsewhere; the condition is plain data."""
    return np.where(condition, x, y)


where.vjp("x")(lambda g, condition: np.where(condition, g, 0))
where.vjp("y")(lambda g, condition: np.where(condition, 0, g))
where.jvp("x")(lambda dx, condition: np.where(condition, dx, 0))
where.jvp("y")(lambda dy, condition: np.where(condition, 0, dy))
