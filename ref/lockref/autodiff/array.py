"""Traced arrays: values that carry a derivative through ordinary NumPy expressions.

A transform (reverse or forward mode) wraps its inputs in `Traced` arrays. Every primitive that meets
one hands the work to the *innermost* transform among its arguments, so transforms nest: the serial
number, drawn when a transform starts, says which is innermost.
"""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, Protocol, TypeAlias

import numpy as np

_serials = itertools.count()  # only orders nested transforms; no result depends on its value


class Trace(Protocol):
    """What a transform must offer: an order among transforms and a way to apply a primitive."""

    serial: int

    def apply(self, op: Any, args: tuple[Any, ...], params: dict[str, Any]) -> "Traced": ...


def next_serial() -> int:
    """Serial number of a new transform; larger means further in."""
    return next(_serials)


class Traced:
    """An array inside a transform; `value` is the array one level further out."""

    __slots__ = ("trace", "value")

    trace: Trace
    value: Any

    ufuncs: ClassVar[dict[Any, Callable[..., Any]]] = {}  # filled once, by autodiff.ops
    functions: ClassVar[dict[Any, Callable[..., Any]]] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.value)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.value.dtype
        return dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<traced {self.dtype}{list(self.shape)}>"

    # NumPy's own functions lead here, so `np.tanh(x)` and `np.sum(x)` work on traced arrays.
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "__call__" and ufunc in self.ufuncs and kwargs.get("out") is None:
            return self.ufuncs[ufunc](*inputs, **kwargs)
        if kwargs.get("out") is not None:
            raise TypeError(f"in-place numpy.{ufunc.__name__} of a traced array: write a = a + x instead of a += x")
        raise TypeError(_no_rule(f"numpy.{ufunc.__name__}" + ("" if method == "__call__" else f".{method}")))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func in self.functions:
            return self.functions[func](*args, **kwargs)
        raise TypeError(_no_rule(f"numpy.{func.__name__}"))

    # A traced array has no number of its own to give away: each way out says what to do instead.
    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError(
            f"in-place assignment to a traced array of shape {self.shape}: "
            "build a new array with where(), concatenate() or an addition instead"
        )

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise TypeError(
            f"a traced array of shape {self.shape} cannot become a plain ndarray inside a transform: "
            "use lockref.autodiff operations on it, or compute this value outside the transform"
        )

    def __float__(self) -> NoReturn:
        raise TypeError(
            "float() of a traced array would drop its derivative: "
            "return the array from the function and convert the result"
        )

    __int__ = __index__ = __complex__ = __float__

    def __bool__(self) -> bool:
        return bool(self.value)  # control flow on values is allowed: it has no derivative

    # Comparisons have no derivative either: they give plain truth values.
    def __eq__(self, other: object) -> Any:
        return primal(self) == primal(other)

    def __ne__(self, other: object) -> Any:
        return primal(self) != primal(other)

    def __lt__(self, other: Any) -> Any:
        return primal(self) < primal(other)

    def __le__(self, other: Any) -> Any:
        return primal(self) <= primal(other)

    def __gt__(self, other: Any) -> Any:
        return primal(self) > primal(other)

    def __ge__(self, other: Any) -> Any:
        return primal(self) >= primal(other)

    def __hash__(self) -> int:
        return id(self)


Array: TypeAlias = np.ndarray[Any, Any] | np.generic | float | Traced


def _no_rule(name: str) -> str:
    return (
        f"{name} has no derivative rule here: use an operation of lockref.autodiff.ops, or declare one with @primitive"
    )


def primal(x: Any) -> Any:
    """The plain value under every layer of tracing."""
    while isinstance(x, Traced):
        x = x.value
    return x
