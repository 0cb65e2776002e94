"""Ball arithmetic (Arb, through python-flint): enclosures that hold whatever the rounding.

A ball is a midpoint and a radius; every operation returns a ball that contains the true result. So
an upper bound from here is an upper bound, and a strict comparison that says True is a theorem.
Exact inputs are ints, floats (as the binary fractions they are) and fmpq. Activations go by the
names of their operations in `lockref.autodiff.ops`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, TypeAlias

from flint import acb, acb_poly, arb, arb_series, ctx, fmpq

Real: TypeAlias = int | float | fmpq | arb

BITS = 256  # enough that what cancels in a remainder of order 64 leaves more than a double holds
EXTRA_TERMS = 256  # coefficients summed one by one before Cauchy's estimate bounds the rest
CUBE = fmpq(44715, 10**6)  # of gelu_tanh, arXiv 1606.08415


@contextmanager
def working(terms: int = 1) -> Iterator[None]:
    """Precision and series length of the library inside the block; afterwards what they were before."""
    before = ctx.prec, ctx.cap
    ctx.prec, ctx.cap = BITS, terms
    try:
        yield
    finally:
        ctx.prec, ctx.cap = before


def upper(x: arb) -> float:
    """A float that is at least every number in x."""
    return math.nextafter(float(x.upper()), math.inf)


def lower(x: arb) -> float:
    """A float that is at most every number in x."""
    return math.nextafter(float(x.lower()), -math.inf)


# One formula per activation serves real balls, complex balls and power series alike.
def _sigmoid(x: Any) -> Any:
    return 1 / (1 + (-x).exp())


def _normal_cdf(x: Any) -> Any:
    return (1 + (x * arb(fmpq(1, 2)).sqrt()).erf()) / 2


def _tanh_gain() -> arb:
    return (2 / arb.pi()).sqrt()


def _gelu_tanh_gate(x: Any) -> Any:
    return _sigmoid((x + x * x * x * arb(CUBE)) * (2 * _tanh_gain()))


_FORMULAS: dict[str, Callable[[Any], Any]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu_erf": lambda x: x * _normal_cdf(x),
    "gelu_tanh": lambda x: x * _gelu_tanh_gate(x),
    "tanh": lambda x: 2 * _sigmoid(2 * x) - 1,
    "sigmoid": _sigmoid,
}


def _gelu_tanh_poles(reach: arb) -> list[acb]:
    """z = i x with x − CUBE x³ = π(k + ½) / √(2/π), k ≥ 0, and their conjugates; |z| bounds k."""
    last = math.ceil(upper(_tanh_gain() * (reach + CUBE * reach**3) / arb.pi()))
    heights = (arb.pi() * fmpq(2 * k + 1, 2) / _tanh_gain() for k in range(last + 1))
    return [x * acb(0, 1) for height in heights for x in acb_poly([-height, 1, 0, -arb(CUBE)]).roots()]


# Of poles on the imaginary axis the first pair is nearest to every real point, and to every range.
_POLES: dict[str, Callable[[arb], list[acb]]] = {
    "silu": lambda reach: [acb(0, arb.pi())],
    "gelu_erf": lambda reach: [],
    "gelu_tanh": _gelu_tanh_poles,
    "tanh": lambda reach: [acb(0, arb.pi() / 2)],
    "sigmoid": lambda reach: [acb(0, arb.pi())],
}


def formula(activation: str) -> Callable[[Any], Any]:
    """The activation as a function of balls and of power series. Raises ValueError for an unknown name."""
    if activation not in _FORMULAS:
        raise ValueError(f"no activation {activation!r}: choose one of {', '.join(_FORMULAS)}")
    return _FORMULAS[activation]


def poles(activation: str, reach: arb) -> list[acb]:
    """Poles of least modulus, all that may be nearest to a real point or range within `reach`; up to conjugates."""
    formula(activation)
    with working():
        return _POLES[activation](reach)


def checked_orders(orders: Sequence[int]) -> Sequence[int]:
    """The same orders; ValueError where there are none, or a negative one."""
    if not orders:
        raise ValueError("no orders: give at least one")
    if min(orders) < 0:
        raise ValueError(f"the order is {min(orders)}; it must be at least 0")
    return orders


def coefficients(activation: str, t: Real, order: int) -> list[arb]:
    """Enclosures of act⁽ⁿ⁾(t) / n!, n = 0..order. Raises ValueError for an unknown name or order < 0."""
    checked_orders([order])
    with working(order + 1):
        found = list(formula(activation)(arb_series([t, 1])))
        return found + [arb(0)] * (order + 1 - len(found))


def pole_distance(activation: str, t: Real) -> arb:
    """Enclosure of the radius of convergence about a real t, ∞ for gelu_erf."""

    def distance(reach: arb) -> arb:
        return reduce(arb.min, (abs(p - arb(t)) for p in poles(activation, reach)), arb.pos_inf())

    with working():
        nearest = distance(arb(0))
        return distance(abs(arb(t)) + nearest) if nearest.is_finite() else nearest


def errors(activation: str, t: Real, orders: Sequence[int], z: Real) -> list[arb]:
    """Enclosures of act(z) − Σ_{n ≤ N} aₙ (z − t)ⁿ for every N of `orders`.

    Raises ValueError for an unknown activation, no orders, or a negative one.
    """
    a = coefficients(activation, t, max(checked_orders(orders)))
    with working():
        step, value = arb(z) - t, _FORMULAS[activation](arb(z))
        power, left = arb(1), []
        for an in a:
            value -= an * power
            power *= step
            left.append(value)
    return [left[n] for n in orders]


def half_circle_bound(modulus: Callable[[arb], arb]) -> arb:
    """At most twice the maximum over [0, 1] of a modulus on a curve, a function of half-turns.

    The curve is covered by arcs that are halved until each is provably below twice a value that is provably attained.
    """
    attained = arb(0)
    arcs = [(fmpq(j, 8), fmpq(j + 1, 8)) for j in range(8)]
    while arcs:
        middles = [(a + b) / 2 for a, b in arcs]
        attained = reduce(arb.max, (modulus(arb(m)).lower() for m in middles), attained)
        halves = [h for (a, b), m in zip(arcs, middles, strict=True) for h in ((a, m), (m, b))]
        arcs = [(a, b) for a, b in halves if not modulus(arb(a).union(arb(b))) <= 2 * attained]
    return (2 * attained).upper()


def circle_bound(activation: str, t: Real, radius: arb) -> arb:
    """An upper bound, at most twice too large, of |act| on the disc |z − t| ≤ radius.

    By the maximum principle its circle is enough, and by symmetry the upper half of it.
    Raises ValueError unless the disc provably contains no pole.
    """
    if not radius < pole_distance(activation, t):
        raise ValueError(f"{activation}: a pole lies within {float(radius):g} of {float(t):g}; take a smaller radius")
    with working():

        def modulus(turn: arb) -> arb:
            sine, cosine = arb.sin_cos_pi(turn)
            found: arb = abs(_FORMULAS[activation](acb(t + radius * cosine, radius * sine)))
            return found

        return half_circle_bound(modulus)


def sup_bounds(activation: str, t: Real, orders: Sequence[int], reach: Real) -> list[float]:
    """Upper bounds of sup |act(z) − S_N(z)| over |z − t| ≤ reach, for every N of `orders`.

    With q = reach < r < radius of convergence and M ≥ |act| on |z − t| = r, Cauchy gives
    |aₙ| ≤ M r⁻ⁿ, so the error is at most Σ_{N < n ≤ K} |aₙ| qⁿ + M (q/r)^(K + 1) / (1 − q/r).
    Raises ValueError as `errors` does, and unless the reach provably lies within the radius of convergence.
    """
    last = max(checked_orders(orders)) + EXTRA_TERMS
    distance = pole_distance(activation, t)
    with working():
        q = arb(reach)
        # Halfway between reach and the pole; an entire function has room everywhere.
        r = ((q + distance) / 2).lower() if distance.is_finite() else 2 * q + 1
    if not q >= 0:
        raise ValueError(f"the reach is {float(q):g}; it must be at least 0")
    if not q < r:
        raise ValueError(
            f"{activation} about {float(t):g}: the reach {float(q):g} is not within the radius of convergence "
            f"{float(distance):g}, so no bound exists"
        )
    a = coefficients(activation, t, last)
    largest = circle_bound(activation, t, r)
    with working():
        rest = [largest * (q / r) ** (last + 1) / (1 - q / r)]
        for n in range(last, min(orders), -1):
            rest.append(rest[-1] + abs(a[n]) * q**n)
        return [upper(rest[last - n]) for n in orders]
