"""Reverse mode: vector-Jacobian products and gradients of functions of nested arrays."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lockref.autodiff.array import Traced, primal
from lockref.autodiff.tape import Tape, Variable
from lockref.autodiff.tree import flatten, leaf_error


class Pullback:
    """The map from a cotangent of the output to cotangents of the chosen arguments: ū ↦ Jᵀū."""

    def __init__(self, tape: Tape, outs: list[Any], paths: list[str], rebuild: Callable[[list[Any]], Any]) -> None:
        self.tape, self._paths = tape, paths
        self._outs = [(o.node if isinstance(o, Variable) and o.trace is tape else None, np.shape(o)) for o in outs]
        self._rebuild = rebuild
        self._released = False

    def __call__(self, cotangent: Any, *, release: bool = False) -> Any:
        """Cotangents of the arguments, in their structure.

        With `release` each kept array is freed at its last use, and the pullback can't be called again.
        Raises ValueError where the cotangent's structure or shapes differ from the output's.
        """
        if self._released:
            raise RuntimeError("this pullback has released its tape: call vjp again, or pull without release=True")
        seeds: dict[int, Any] = {}
        given, paths, _ = flatten(cotangent)
        if sorted(paths) != sorted(self._paths):
            raise ValueError(f"cotangents have structure {paths}, the output {self._paths}; give one for each array")
        by_path = dict(zip(paths, given, strict=True))
        for path, (node, shape) in zip(self._paths, self._outs, strict=True):
            g = by_path[path]
            if np.shape(g) != shape:
                raise ValueError(f"cotangent{path} has shape {np.shape(g)}, the output {shape}; they must agree")
            if node is not None:
                g = g if isinstance(g, Traced) else np.asarray(g)
                seeds[node] = seeds[node] + g if node in seeds else g
        self._released = release
        found = self.tape.sweep(seeds, release)
        specs = zip(found, self.tape.shapes, self.tape.dtypes, strict=False)  # inputs are the first nodes
        return self._rebuild([_as_cotangent(g, shape, dtype) for g, shape, dtype in specs])


def vjp(f: Callable[..., Any], *args: Any, argnums: int | tuple[int, ...] | None = None) -> tuple[Any, Pullback]:
    """Value and pullback of f at args: (f(x), ū ↦ Jᵀū).

    `argnums` chooses the arguments that need a gradient (default: all); an int gives one cotangent, a
    tuple a tuple of them. Arrays are float32 or float64, in nested dicts, lists and tuples. Frozen
    arguments cost no storage beyond what the rules of the others name.
    """
    chosen = tuple(range(len(args))) if argnums is None else argnums
    numbers = (chosen,) if isinstance(chosen, int) else chosen
    known = {n % len(args) for n in numbers if isinstance(n, int) and -len(args) <= n < len(args)}
    if len(known) != len(numbers):
        raise ValueError(f"argnums={argnums!r} of a function called with {len(args)} arguments; name each once")
    leaves, paths, rebuild = flatten([args[n] for n in numbers])
    for leaf, path in zip(leaves, paths, strict=True):
        if problem := leaf_error(leaf):
            raise TypeError(f"vjp: argument {path}: {problem}")
    values = [x if isinstance(x, Traced) else np.asarray(x) for x in leaves]
    tape = Tape(values)
    traced = list(args)
    for n, tree in zip(numbers, rebuild(tape.variables(values)), strict=True):
        traced[n] = tree
    outs, out_paths, rebuild_out = flatten(f(*traced))
    mine = [isinstance(o, Variable) and o.trace is tape for o in outs]
    value = rebuild_out([o.value if own else o for o, own in zip(outs, mine, strict=True)])

    def restore(found: Any) -> Any:
        trees = rebuild(found)
        return trees[0] if isinstance(chosen, int) else tuple(trees)

    return value, Pullback(tape, outs, out_paths, restore)


def value_and_grad(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., tuple[Any, Any]]:
    """The function x ↦ (f(x), ∇f(x)) for a scalar f; kept arrays are freed during the sweep."""

    def both(*args: Any) -> tuple[Any, Any]:
        value, pullback = vjp(f, *args, argnums=argnums)
        if value is None or isinstance(value, dict | list | tuple) or np.shape(value) != ():
            raise ValueError(f"grad: the function returned {_kind(value)}, not a scalar; use vjp or jacrev")
        return value, pullback(np.ones((), np.asarray(primal(value)).dtype), release=True)

    return both


def _kind(value: Any) -> str:
    plain = value is None or isinstance(value, dict | list | tuple)
    return f"a {type(value).__name__}" if plain else f"shape {np.shape(value)}"


def grad(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """The function x ↦ ∇f(x) for a scalar f of float32 or float64 arrays."""
    both = value_and_grad(f, argnums)
    return lambda *args: both(*args)[1]


def _as_cotangent(g: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A cotangent in the dtype of its primal; zeros where no path led to it."""
    if g is None:
        return np.zeros(shape, dtype)
    return g if isinstance(g, Traced) or g.dtype == dtype else g.astype(dtype)


def jacrev(f: Callable[..., Any], argnums: int = 0) -> Callable[..., Any]:
    """The Jacobian ∂f/∂x row by row in reverse mode: one array (*out, *in) for each array of the argument."""

    def jacobian(*args: Any) -> Any:
        out, pullback = vjp(f, *args, argnums=argnums)
        shape = np.shape(out)
        rows = [flatten(pullback(u)) for u in basis(shape, np.asarray(primal(out)).dtype)]
        columns = zip(*(leaves for leaves, _, _ in rows), strict=True)
        return rows[0][2]([np.stack(c).reshape((*shape, *c[0].shape)) for c in columns])

    return jacobian


def basis(shape: tuple[int, ...], dtype: Any) -> Iterator[Any]:
    """The unit arrays of a shape, in C order."""
    for i in range(int(np.prod(shape))):
        e = np.zeros(shape, dtype)
        e.flat[i] = 1
        yield e
