"""Polynomial bases for MergeBarrier's feed-forward lock: Taylor, and by interpolation Chebyshev and Hermite.

With x = (z − z0)/h, a basis expands act(z + b) as Σₙ cₙ φₙ(x). Taylor has φₙ = xⁿ and cₙ = act⁽ⁿ⁾(z0 + b) hⁿ/n!.
The other two interpolate at the N + 1 nodes of their Gauss quadrature, which by discrete orthogonality
gives the coefficients as sums over these nodes, exactly (Trefethen, Approximation Theory and Approximation Practice,
chapter 4 and 19): Chebyshev polynomials Tₙ on the observed range, Hermite polynomials Heₙ/√n! about the mean in units
of the standard deviation. In each basis φₙ(−x) = (−1)ⁿ φₙ(x).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import roots_hermitenorm

from lockref.autodiff import ops
from lockref.locks.taylor_series import checked, coefficients, finite

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Observed:
    """What the owner saw of a layer's pre-activations: four arrays (m,), one value per hidden unit.

    Raises ValueError for shapes that disagree, values that are not finite, or low above high.
    """

    low: Array
    high: Array
    mean: Array
    deviation: Array

    def __post_init__(self) -> None:
        shapes = [finite(name, value).shape for name, value in vars(self).items()]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise ValueError(f"low, high, mean, deviation have shapes {shapes}: expected (m,) each")
        if np.any(self.low > self.high):
            raise ValueError(f"unit {int(np.argmax(self.low > self.high))}: low is above high; swap them")

    @property
    def center(self) -> Array:
        """Midpoint of the range."""
        return self.low + (self.high - self.low) / 2


def observed(z: ArrayLike) -> Observed:
    """Range, mean and standard deviation of each hidden unit: z (…, m), over all rows.

    Raises ValueError where z is empty or not finite.
    """
    values = finite("pre-activations", z)
    if values.ndim < 1 or values.size == 0:
        raise ValueError(f"pre-activations of shape {values.shape}: expected (…, m), at least one row")
    rows = values.reshape(-1, values.shape[-1])
    return Observed(rows.min(axis=0), rows.max(axis=0), rows.mean(axis=0), rows.std(axis=0))


@dataclass(frozen=True)
class Basis:
    """Polynomials φₙ, by φ₀ = 1, φ₁ = x, φₙ₊₁ = aₙ x φₙ − bₙ φₙ₋₁, and how a layer's units are placed in them."""

    name: str
    recurrence: Callable[[int], tuple[float, float]]  # n -> aₙ, bₙ
    place: Callable[[Observed], tuple[Array, Array]]  # z0 and h of each unit
    nodes: Callable[[int], tuple[Array, Array]] | None = None  # Gauss nodes and weights; None: derivatives at z0

    def polynomials(self, x: Any, first: Any = 1.0) -> Iterator[Any]:
        """first · φ₀(x), first · φ₁(x), … without end; `first` has the shape of x or broadcasts to it."""
        before, now, n = 0.0 * x, first + 0.0 * x, 0
        while True:
            yield now
            a, b = self.recurrence(n)
            before, now, n = now, a * x * now - b * before, n + 1

    def coefficients(self, activation: str, point: ArrayLike, scale: ArrayLike, order: int) -> Array:
        """cₙ, n = 0..order, of act(point + scale · x): point and scale (…) → float64 (order + 1, …).

        Raises ValueError for an unknown activation, a negative order, a scale that is not positive, values that
        are not finite, or an order past what float64 can hold.
        """
        t, h = np.broadcast_arrays(checked(activation, point), finite("scale", scale))
        if order < 0:
            raise ValueError(f"the order is {order}; it must be at least 0")
        if np.any(h <= 0):
            raise ValueError(f"scale {float(np.min(h)):g}: it must be positive")
        with np.errstate(all="ignore"):  # what overflows is refused below
            if self.nodes is None:
                powers = np.arange(order + 1).reshape(-1, *[1] * h.ndim)
                found = coefficients(activation, t, order) * h**powers
            else:
                found = self._interpolate(activation, t, h, *self.nodes(order + 1))
        if not np.all(np.isfinite(found)):
            last = int(np.argmin(np.isfinite(found).reshape(order + 1, -1).all(axis=1))) - 1
            raise ValueError(f"order {order} is past the coefficients that float64 can hold: take at most {last}")
        return found

    def _interpolate(self, activation: str, t: Array, h: Array, x: Array, weights: Array) -> Array:
        phi = np.array(list(islice(self.polynomials(x), len(x))))
        mean = phi * weights / np.sum(phi * phi * weights, axis=1, keepdims=True)
        values: Array = ops.ALL[activation](t + h * x.reshape(-1, *[1] * t.ndim))
        return np.tensordot(mean, values, 1)


def _positive(scale: Array) -> Array:
    """1 where a unit never moved: any scale does there."""
    return np.where(scale > 0, scale, 1.0)


def _chebyshev_nodes(count: int) -> tuple[Array, Array]:
    return np.cos(np.pi * (np.arange(count) + 0.5) / count), np.full(count, 1 / count)


def _hermite_nodes(count: int) -> tuple[Array, Array]:
    nodes, weights = roots_hermitenorm(count)
    return nodes, weights / math.sqrt(2 * math.pi)


TAYLOR = Basis("taylor", lambda n: (1.0, 0.0), lambda seen: (seen.center, np.ones_like(seen.low)))
CHEBYSHEV = Basis(
    "chebyshev",
    lambda n: (2.0, 1.0) if n else (1.0, 0.0),
    lambda seen: (seen.center, _positive((seen.high - seen.low) / 2)),
    _chebyshev_nodes,
)
HERMITE = Basis(
    "hermite",
    lambda n: (1 / math.sqrt(n + 1), math.sqrt(n / (n + 1))),
    lambda seen: (seen.mean, _positive(seen.deviation)),
    _hermite_nodes,
)
BASES = {basis.name: basis for basis in (TAYLOR, CHEBYSHEV, HERMITE)}
