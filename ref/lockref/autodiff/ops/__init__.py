"""The operations, and the two doors through which NumPy expressions reach them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lockref.autodiff.array import Traced, primal
from lockref.autodiff.ops.activations import erf, exp, gelu_erf, gelu_tanh, log, relu, sigmoid, silu, tanh
from lockref.autodiff.ops.elementwise import (
    add,
    divide,
    maximum,
    multiply,
    negative,
    power,
    rsqrt,
    sqrt,
    subtract,
    where,
)
from lockref.autodiff.ops.fused import (
    cross_entropy,
    normalize,
    rms_norm,
    rope,
    rope_tables,
    swiglu,
)
from lockref.autodiff.ops.grouped_attention import attention, softmax
from lockref.autodiff.ops.linalg import matmul
from lockref.autodiff.ops.reduce import max, mean, sum
from lockref.autodiff.ops.residual_block import ACTIVATIONS, low_rank, normed_low_rank
from lockref.autodiff.ops.shape import (
    broadcast_to,
    concatenate,
    getitem,
    join,
    reshape,
    scatter,
    take,
    transpose,
)
from lockref.autodiff.primitive import Primitive

__all__ = [
    "ACTIVATIONS", "ALL", "add", "attention", "broadcast_to", "concatenate", "cross_entropy", "divide", "erf",
    "exp", "gelu_erf", "gelu_tanh", "getitem", "join", "log", "low_rank", "matmul", "max", "maximum", "mean",
    "multiply", "negative", "normalize", "normed_low_rank", "power", "relu", "reshape", "rms_norm", "rope",
    "rope_tables", "rsqrt", "scatter", "sigmoid", "silu", "softmax", "sqrt", "subtract", "sum", "swiglu", "take",
    "tanh", "transpose", "where",
]  # fmt: skip

ALL: dict[str, Primitive] = {v.name: v for v in tuple(globals().values()) if isinstance(v, Primitive)}


def _power(x: Any, y: Any) -> Any:
    if isinstance(y, Traced):
        base = x if isinstance(x, Traced) else np.asarray(x, y.dtype)  # a constant does not change the precision
        return exp(multiply(y, log(base)))
    return power(x, exponent=y)


def _transpose(x: Any, axes: Any = None) -> Any:
    return transpose(x, axes=None if axes is None else tuple(axes))


def _swapaxes(x: Any, first: int, second: int) -> Any:
    axes = list(range(len(x.shape)))
    axes[first], axes[second] = axes[second], axes[first]
    return transpose(x, axes=tuple(axes))


def _stack(arrays: Any, axis: int = 0) -> Any:
    shape = list(np.shape(arrays[0]))
    shape.insert(axis % (len(shape) + 1), 1)
    return concatenate([reshape(x, shape=tuple(shape)) for x in arrays], axis)


_COMPARISONS: tuple[Any, ...] = (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)


def _compare(ufunc: Any) -> Any:
    return lambda x, y: ufunc(primal(x), primal(y))


# Door one: NumPy's own functions, called on a traced array.
Traced.ufuncs.update({
    np.add: add, np.subtract: subtract, np.multiply: multiply, np.divide: divide, np.negative: negative,
    np.power: _power, np.sqrt: sqrt, np.maximum: maximum, np.exp: exp, np.log: log, np.tanh: tanh,
    np.matmul: matmul, np.square: lambda x: multiply(x, x),
    np.cosh: lambda x: divide(add(exp(x), exp(negative(x))), 2.0),
})  # fmt: skip
Traced.ufuncs.update((f, _compare(f)) for f in _COMPARISONS)
Traced.functions.update({
    np.sum: lambda x, axis=None, keepdims=False: sum(x, axis=axis, keepdims=keepdims),
    np.mean: lambda x, axis=None, keepdims=False: mean(x, axis=axis, keepdims=keepdims),
    np.max: lambda x, axis=None, keepdims=False: max(x, axis=axis, keepdims=keepdims),
    np.reshape: lambda x, shape: reshape(x, shape=shape),
    np.broadcast_to: lambda x, shape: broadcast_to(x, shape=shape),
    np.where: lambda condition, x, y: where(x, y, condition=condition),
    np.concatenate: concatenate, np.transpose: _transpose, np.swapaxes: _swapaxes,
    np.stack: _stack, np.shape: lambda x: x.shape, np.ndim: lambda x: x.ndim,
})  # fmt: skip


def _method(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: op(x, y)


def _swapped(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: op(y, x)


# Door two: operators and methods of a traced array.
_MEMBERS: dict[str, Any] = {
    "__add__": _method(add), "__radd__": _method(add), "__sub__": _method(subtract), "__rsub__": _swapped(subtract),
    "__mul__": _method(multiply), "__rmul__": _method(multiply), "__truediv__": _method(divide),
    "__rtruediv__": _swapped(divide), "__pow__": _power, "__rpow__": _swapped(_power),
    "__matmul__": _method(matmul), "__rmatmul__": _swapped(matmul), "__neg__": lambda x: negative(x),
    "__getitem__": lambda x, key: getitem(x, key=key),
    "reshape": lambda x, *shape: reshape(x, shape=shape[0] if len(shape) == 1 else shape),
    "transpose": lambda x, *axes: _transpose(x, axes or None), "T": property(transpose),
    "sum": Traced.functions[np.sum], "mean": Traced.functions[np.mean], "max": Traced.functions[np.max],
}  # fmt: skip
for _name, _member in _MEMBERS.items():
    setattr(Traced, _name, _member)
