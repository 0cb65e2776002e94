"""How far round-off may carry a result: the derived tolerance between two implementations of one function.

`Rounding` is a transform beside reverse and forward mode. It runs a function of the engine in the
precision of its inputs, and to the result of every elementary operation it adds a random error as
large as a lower precision would commit. What comes out differs from the exact result by a sample of
the accumulated error: unit round-off, contraction lengths and the conditioning of the whole function
are all in it, and nothing was fitted.

Model of one operation (Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019: rounding errors as independent
with mean zero), u the unit round-off, η standard normal:
  a sum of n terms            u √n Σ|terms| η     whatever the order in which it is added up
  + − × ÷                     u |result| η
  exp, rsqrt, silu …          4 u |result| η      (a few units in the last place in any good library)
  RoPE tables                 angle = position · θ^(−2i/c), all of it in the low precision
  indexing, reshaping, max    nothing
Fused operations go through their unfused twins. A single rounding is at most u and u/√3 in root mean
square, and partial sums are smaller than the sum of magnitudes, so the model errs on the safe side.
"""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

import numpy as np

from lockref.autodiff.array import Traced, next_serial
from lockref.autodiff.primitive import Primitive
from lockref.autodiff.tree import flatten

UNIT16, UNIT32, UNIT64 = 2.0**-8, 2.0**-24, 2.0**-53  # of bfloat16, float32, float64
EXACT = frozenset(
    {"reshape", "transpose", "broadcast_to", "getitem", "take", "join", "negative", "max", "maximum", "where"}
)
BASIC = frozenset({"add", "subtract", "multiply", "divide"})


class Rounding:
    """A trace whose operations commit rounding errors of size `unit`.

    `inside` gives another unit within named fused operations, for mixed precision; `wide` is the one in which sums
    add up and RoPE computes its angles before the result is rounded to `unit`, as hardware does for bfloat16.
    """

    def __init__(
        self,
        unit: float,
        rng: np.random.Generator,
        inside: Mapping[str, float] | None = None,
        wide: float | None = None,
    ) -> None:
        self.serial = next_serial()
        self.unit = unit
        self.rng = rng
        self.inside = dict(inside or {})
        self.wide = wide

    def apply(self, op: Primitive, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        """op(*args, **params) with its rounding error."""
        outer = self.unit
        self.unit = self.inside.get(op.name, outer)
        try:
            if op.name == "rope":
                params = self._tables(**params)
            if op.twin is not None:
                return op.twin(*args, **params)
            values = [a.value if isinstance(a, Traced) else a for a in args]
            out = op(*values, **params)
            size = self._size(op.name, out, values, params)
            return self.wrap(out if size is None else out + size * self.rng.standard_normal(np.shape(out)))
        finally:
            self.unit = outer

    def wrap(self, value: Any) -> Traced:
        """An array on this trace."""
        traced = Traced()
        traced.trace, traced.value = self, value
        return traced

    def _size(self, name: str, out: Any, values: list[Any], params: dict[str, Any]) -> Any:
        """Standard deviation of the error of one operation, elementwise; None where it is exact."""
        if name in EXACT:
            return None
        if name == "matmul":
            x, y = values
            return self._summed(x.shape[-1], np.matmul(np.abs(x), np.abs(y)), out)
        if name in ("sum", "mean"):
            x = values[0]
            terms = np.sum(np.abs(x), axis=params.get("axis"), keepdims=params.get("keepdims", False))
            n = x.size / max(np.size(out), 1)
            return self._summed(n, terms / n if name == "mean" else terms, out)
        if name == "scatter":  # rows that meet at one index are added up
            key, shape = params["key"], params["shape"]
            counts, terms = np.zeros(shape), np.zeros(shape)
            np.add.at(counts, key, 1.0)
            np.add.at(terms, key, np.abs(values[0]))
            return self.unit * np.sqrt(counts) * terms
        scale = 1 if name in BASIC else 4
        return scale * self.unit * np.where(np.isfinite(out), np.abs(out), 0.0)  # a causal mask holds −∞

    def _summed(self, n: float, magnitudes: Any, out: Any) -> Any:
        """Of a sum of n terms, given Σ|terms|."""
        if self.wide is None:
            return self.unit * sqrt(n) * magnitudes
        return self.wide * sqrt(n) * magnitudes + self.unit * np.abs(out)

    def _tables(self, cos: Any, sin: Any) -> dict[str, Any]:
        """RoPE tables whose angles were rounded: a power (which magnifies by |ln f|), two products, a quotient."""
        frequencies = np.arctan2(sin[1:2], cos[1:2])  # the angles at position 1, all in (0, 1]
        angles = np.arange(len(cos))[:, None] * frequencies
        size = (self.wide or self.unit) * angles * (np.abs(np.log(frequencies)) + 4) if len(cos) > 1 else angles
        angles = angles + size * self.rng.standard_normal(cos.shape)
        noise = self.unit * self.rng.standard_normal((2, *cos.shape))
        return {"cos": np.cos(angles) + noise[0], "sin": np.sin(angles) + noise[1]}


def rounding_error(
    f: Callable[..., Any],
    *args: Any,
    unit: float,
    rng: np.random.Generator,
    inside: Mapping[str, float] | None = None,
    wide: float | None = None,
    draws: int = 8,
) -> Any:
    """Largest |error| of each array that f returns, over its elements and over `draws` samples of round-off.

    args: float64 arrays in nested dicts, lists and tuples, taken as exact. The result has the structure
    of f(*args), a float for each array. Two implementations may differ by the sum of their errors.
    """
    exact, _, rebuild = flatten(f(*args))
    worst = [0.0] * len(exact)
    for _ in range(draws):
        trace = Rounding(unit, rng, inside, wide)
        leaves, _, restore = flatten(args)
        found, _, _ = flatten(f(*restore([trace.wrap(np.asarray(leaf)) for leaf in leaves])))
        for i, (got, want) in enumerate(zip(found, exact, strict=True)):
            got = got.value if isinstance(got, Traced) else got
            worst[i] = max(worst[i], float(np.max(np.abs(got - want))))
    return rebuild(worst)
