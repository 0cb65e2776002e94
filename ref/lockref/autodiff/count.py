"""Counting arithmetic: how many scalar operations a NumPy computation performs.

A `Counted` array passes through any NumPy code and adds up one operation for each element that an
elementwise function computes or a reduction consumes, and 2mnk for a matrix product (m, k) × (k, n).
Moving data (reshaping, slicing, copying, zero-filling, gathering) counts nothing; adding does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lockref.autodiff.array import Traced
from lockref.autodiff.tape import Tape

_SELECTIONS = (np.where, np.maximum, np.minimum)  # one comparison or choice for each element


class Counter:
    """The total so far."""

    def __init__(self) -> None:
        self.operations = 0


class Counted(np.ndarray[Any, Any]):
    """An array whose arithmetic is counted; what is computed from it is counted too."""

    counter: Counter | None = None

    def __array_finalize__(self, parent: Any) -> None:
        self.counter = getattr(parent, "counter", None)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if any(isinstance(x, Traced) for x in inputs):
            return NotImplemented  # a frozen array meets a traced one, which comes back here with its value
        plain: list[Any] = [x if isinstance(x, tuple) else np.asarray(x) for x in inputs]  # at: a tuple is an index
        target = {} if out is None else {"out": tuple(np.asarray(o) for o in out)}
        result = getattr(ufunc, method)(*plain, **target, **kwargs)
        counter = _counter((*inputs, *(out or ())))
        if ufunc in (np.matmul, np.vecdot):
            counter.operations += 2 * np.size(result) * plain[0].shape[-1]
        elif method == "__call__":
            counter.operations += np.size(result)
        else:  # reduce, and at: one operation for each element that goes in
            counter.operations += np.size(plain[0] if method == "reduce" else plain[2])
        if out is not None:
            return out[0]
        return None if result is None else wrap(result, counter)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        counter = _counter(args)
        result = super().__array_function__(func, types, args, kwargs)
        if func in _SELECTIONS:
            counter.operations += np.size(result)
        return result


def wrap(x: Any, counter: Counter) -> Counted:
    """x as an array whose arithmetic adds to `counter`."""
    counted = np.asarray(x).view(Counted)
    counted.counter = counter
    return counted


def operations(f: Callable[..., Any], *args: Any) -> int:
    """Scalar operations that f(*args) performs on its array arguments."""
    counter = Counter()
    f(*(wrap(a, counter) for a in args))
    return counter.operations


def count_passes(f: Callable[..., Any], args: Sequence[Any], rng: np.random.Generator) -> tuple[int, int, int]:
    """Scalar operations of f(*args), of the reverse sweep through it for all arguments, and the result's size."""
    counter = Counter()
    values = [wrap(x, counter) for x in args]
    tape = Tape(values)
    out = f(*tape.variables(values))
    forward, counter.operations = counter.operations, 0
    tape.sweep({out.node: wrap(rng.normal(size=out.shape), counter)}, release=True)
    return forward, counter.operations, int(np.size(out.value))


def _counter(values: Any) -> Counter:
    for x in values:
        if isinstance(x, list | tuple):
            x = next((y for y in x if isinstance(y, Counted)), None)
        if isinstance(x, Counted) and x.counter is not None:
            return x.counter
    return Counter()
