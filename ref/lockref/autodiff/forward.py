"""Forward mode: tangents travel with the values, and nothing is kept for later."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lockref.autodiff.array import Traced, next_serial, primal
from lockref.autodiff.primitive import Primitive
from lockref.autodiff.reverse import basis, grad
from lockref.autodiff.tree import flatten, leaf_error


class Dual(Traced):
    """A traced array of forward mode: value + ε·tangent."""

    __slots__ = ("tangent",)

    def __init__(self, trace: "Push", value: Any, tangent: Any) -> None:
        self.trace = trace
        self.value = value
        self.tangent = tangent


class Push:
    """Applies each operation to value and tangent at once."""

    def __init__(self) -> None:
        self.serial = next_serial()

    def apply(self, op: Primitive, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        """The output with tangent Σ_i ∂op/∂args_i · tangent_i."""
        if op.twin is not None:
            return op.twin(*args, **params)
        mine = [isinstance(a, Dual) and a.trace is self for a in args]
        values = [a.value if own else a for a, own in zip(args, mine, strict=True)]
        out = op(*values, **params)
        scope = {**dict(zip(op.args, values, strict=False)), "out": out}
        tangent: Any = None
        for a, own, name in zip(args, mine, op.args, strict=False):
            if own:
                if name not in op.jvps:
                    raise TypeError(f"{op.name}: no forward rule for {name!r}; declare @{op.name}.jvp({name!r})")
                rule = op.jvps[name]
                reads = [scope[n] if n in scope else op.datum(n, values, params) for n in rule.names]
                term = rule.function(a.tangent, *reads)
                tangent = term if tangent is None else tangent + term
        if np.shape(tangent) != np.shape(out):
            tangent = np.broadcast_to(tangent, np.shape(out))
        return Dual(self, out, tangent)

    def linear(self, f: Callable[[Any], Any], x: Any) -> Any:
        """f(x) for a function that is linear but knows no traced arrays."""
        value, tangent = f(x.value), f(x.tangent)
        if isinstance(value, tuple | list):
            return [Dual(self, v, t) for v, t in zip(value, tangent, strict=True)]
        return Dual(self, value, tangent)


def _numbered(args: Sequence[Any], argnum: int) -> int:
    if not -len(args) <= argnum < len(args):
        raise ValueError(f"argnums={argnum} of a function called with {len(args)} arguments")
    return argnum % len(args)


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """Value and directional derivative: (f(x), J_f(x) v).

    `primals` and `tangents` are sequences of equal structure (nested dicts, lists and tuples of
    float arrays). Raises TypeError or ValueError where a tangent does not match its primal.
    """
    push = Push()
    values, paths, rebuild = flatten(tuple(primals))
    directions, other, _ = flatten(tuple(tangents))
    if sorted(paths) != sorted(other):
        raise ValueError(f"jvp: tangents have structure {other}, primals {paths}; give one tangent for each primal")
    duals = []
    along = dict(zip(other, directions, strict=True))
    for value, path in zip(values, paths, strict=True):
        direction = along[path]
        if problem := leaf_error(value):
            raise TypeError(f"jvp: primals{path}: {problem}")
        if np.shape(value) != np.shape(direction):
            got, want = np.shape(direction), np.shape(value)
            raise ValueError(f"jvp: tangents{path} has shape {got}, its primal {want}; they must agree")
        value, direction = _array(value), _array(direction)
        same = isinstance(direction, Traced) or direction.dtype == value.dtype
        duals.append(Dual(push, value, direction if same else direction.astype(value.dtype)))
    outs, _, rebuild_out = flatten(f(*rebuild(duals)))
    mine = [isinstance(o, Dual) and o.trace is push for o in outs]
    out_values = [o.value if own else o for o, own in zip(outs, mine, strict=True)]
    out_tangents = [
        o.tangent if own else np.zeros(np.shape(o), getattr(o, "dtype", float))
        for o, own in zip(outs, mine, strict=True)
    ]
    return rebuild_out(out_values), rebuild_out(out_tangents)


def _array(x: Any) -> Any:
    return x if isinstance(x, Traced) else np.asarray(x)


def jacfwd(f: Callable[..., Any], argnums: int = 0) -> Callable[..., Any]:
    """The Jacobian ∂f/∂x column by column in forward mode: an array (*out, *in) for one array argument."""

    def jacobian(*args: Any) -> Any:
        n = _numbered(args, argnums)
        x = _array(args[n])

        def along(direction: Any) -> Any:
            return jvp(lambda y: f(*args[:n], y, *args[n + 1 :]), [x], [direction])[1]

        columns = [along(e) for e in basis(x.shape, x.dtype)]
        shape = np.shape(columns[0]) if columns else np.shape(primal(f(*args)))
        return np.stack(columns, axis=-1).reshape((*shape, *x.shape)) if columns else np.zeros((*shape, *x.shape))

    return jacobian


def hvp(f: Callable[..., Any], argnums: int = 0) -> Callable[..., Any]:
    """The function (*args, v) ↦ ∇²f · v, forward over reverse: about twice the cost of a gradient.

    v has the structure of the argument differentiated.
    """
    gradient = grad(f, argnums)

    def product(*args: Any) -> Any:
        *point, v = args
        n = _numbered(point, argnums)
        return jvp(lambda x: gradient(*point[:n], x, *point[n + 1 :]), [point[n]], [v])[1]

    return product
