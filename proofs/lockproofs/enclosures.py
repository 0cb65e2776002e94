"""Certified errors of polynomials that stand in for an activation on a range, and bounds of them.

A polynomial is any function of z that also takes power series of balls, such as `taylor_polynomial(…)`.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from flint import acb, arb, arb_series, fmpq
from numpy.typing import NDArray

from lockproofs.balls import (
    Real,
    checked_orders,
    coefficients,
    formula,
    half_circle_bound,
    lower,
    poles,
    upper,
    working,
)
from lockref.locks.bases import CHEBYSHEV

Array = NDArray[np.float64]
Polynomial: TypeAlias = Callable[[Any], Any]

TERMS = 8  # of the series that encloses an error on a piece of the range
PIECES = 1024  # after which an enclosure is returned as wide as it is
CLOSE = 0.02  # relative width at which an enclosure is narrow enough
ELLIPSES = tuple(fmpq(k, 8) for k in range(1, 8))  # shares of the largest ellipse's log, tried for the least bound


def taylor_polynomial(activation: str, t: Real, order: int) -> Polynomial:
    """S_N about t, with enclosed coefficients."""
    a = coefficients(activation, t, order)

    def evaluate(z: Any) -> Any:
        step = z - arb(t)
        return reduce(lambda total, an: total * step + an, reversed(a[:-1]), 0 * step + a[-1])

    return evaluate


def chebyshev_interpolant(activation: str, low: Real, high: Real, order: int) -> Polynomial:
    """The interpolant at the N + 1 Chebyshev nodes of a range, with enclosed coefficients."""
    with working():
        center, half = (arb(low) + high) / 2, (arb(high) - low) / 2
        nodes = [arb.cos_pi(arb(fmpq(2 * k + 1, 2 * order + 2))) for k in range(order + 1)]
        values = [formula(activation)(center + half * x) for x in nodes]
        c = []
        for n in range(order + 1):
            cosines = (arb.cos_pi(arb(fmpq(n * (2 * k + 1), 2 * order + 2))) for k in range(order + 1))
            total = sum((v * x for v, x in zip(values, cosines, strict=True)), arb(0))
            c.append(total * (2 if n else 1) / (order + 1))

    def evaluate(z: Any) -> Any:
        phi = CHEBYSHEV.polynomials((z - center) / half)
        return sum((p * cn for p, cn in zip(phi, c, strict=False)), 0 * z)

    return evaluate


def greatest_error(
    activation: str, polynomial: Polynomial, low: float | fmpq, high: float | fmpq
) -> tuple[float, float]:
    """Floats (at least, at most) that enclose max |act(z) − polynomial(z)| over low ≤ z ≤ high.

    On a piece of midpoint m and half-width h, the error is at most Σ_{k < K} |r_k| hᵏ + |r_K| h^K, with r_k its
    Taylor coefficients at m and r_K that on the whole piece (Lagrange). The piece with the greatest
    bound is halved until the bounds are within 2 % of an error that is attained.
    """
    act = formula(activation)
    attained = 0.0

    def piece(a: fmpq, b: fmpq) -> tuple[float, fmpq, fmpq]:
        nonlocal attained
        middle, half = (a + b) / 2, (b - a) / 2
        whole = arb(a).union(arb(b))
        z, box = arb_series([middle, 1]), arb_series([whole, 1])
        try:
            here, there = (_padded(act(s) - polynomial(s)) for s in (z, box))
        except ValueError:  # a division by a ball around 0: too wide a piece
            return -math.inf, a, b
        attained = max(attained, lower(abs(here[0])))
        bound = sum((abs(r) * half**k for k, r in enumerate(here[:TERMS])), abs(there[TERMS]) * half**TERMS)
        return -upper(bound), a, b

    with working(TERMS + 1):
        for z in (low, high):
            attained = max(attained, lower(abs(act(arb(z)) - polynomial(arb(z)))))
        ends = [_exact(low) + (_exact(high) - _exact(low)) * fmpq(k, 8) for k in range(9)]
        heap = [piece(a, b) for a, b in pairwise(ends)]
        heapq.heapify(heap)
        for _ in range(PIECES):
            if -heap[0][0] <= (1 + CLOSE) * attained:
                break
            _, a, b = heapq.heappop(heap)
            for pair in ((a, (a + b) / 2), ((a + b) / 2, b)):
                heapq.heappush(heap, piece(*pair))
        return attained, -heap[0][0]


def _exact(x: float | fmpq) -> fmpq:
    return fmpq(*x.as_integer_ratio()) if isinstance(x, float | int) else x


def _padded(series: arb_series) -> list[arb]:
    found = list(series)
    return found + [arb(0)] * (TERMS + 1 - len(found))


def layer_error_bounds(
    activation: str, low: Sequence[float], high: Sequence[float], order: int, factor: Array, weight: Array
) -> Array:
    """Upper bounds (d,) of a Taylor layer's error in each output, for all z in the ranges and all |u| ≤ factor.

    Σ_j |W_ij| factor_j E_j with E_j ≥ the certified greatest error of unit j about its midpoint: low, high, factor
    (m,), weight (d, m). Rounded up past the round-off of the sum itself.
    """
    worst = [
        greatest_error(activation, taylor_polynomial(activation, a + (b - a) / 2, order), a, b)[1]
        for a, b in zip(map(float, low), map(float, high), strict=True)
    ]
    out: Array = np.abs(weight) @ (np.asarray(factor) * worst) * (1 + 4 * len(worst) * float(np.finfo(np.float64).eps))
    return out


def lagrange_at_least(activation: str, t: Real, low: Real, high: Real, order: int) -> float:
    """A float at most Lagrange's bound max over [low, high] of |act⁽ᴺ⁺¹⁾|/(N+1)! · reach^(N+1), from 65 points."""
    n = order + 1
    with working(n + 1):
        points = [arb(low) + (arb(high) - low) * fmpq(k, 64) for k in range(65)]
        reach = arb.max(arb(t) - low, arb(high) - t) ** n
        return max(lower(abs(formula(activation)(arb_series([s, 1]))[n]) * reach) for s in points)


def bernstein_radius(activation: str, low: Real, high: Real) -> arb:
    """ρ of the largest ellipse with foci low and high without a pole of the activation, ∞ for gelu_erf.

    A point x of the plane in which the range is [−1, 1] lies on the ellipse of ρ = |x + √(x² − 1)| > 1, whose
    half-axes add up to ρ. Raises ValueError for an unknown activation, or unless low < high.
    """
    if not arb(low) < arb(high):
        raise ValueError(f"the range is [{float(low):g}, {float(high):g}]: low must be below high")
    with working():
        center, half = (arb(low) + high) / 2, (arb(high) - low) / 2

        def rho(pole: acb) -> arb:
            x = (pole - center) / half
            root = (x * x - 1).sqrt()
            return arb.max(abs(x + root), abs(x - root))

        nearest = reduce(arb.min, map(rho, poles(activation, arb(0))), arb.pos_inf())
        if not nearest.is_finite():
            return nearest
        # its ellipse lies in this disc, so poles outside do not matter
        reach = abs(center) + half * (nearest + 1 / nearest) / 2
        return reduce(arb.min, map(rho, poles(activation, reach)), nearest)


def ellipse_bound(activation: str, low: Real, high: Real, rho: arb) -> arb:
    """An upper bound, at most twice too large, of |act| on the ellipse with foci low and high, half-axes' sum ρ.

    Raises ValueError unless 1 < ρ and the ellipse provably contains no pole.
    """
    if not 1 < rho < bernstein_radius(activation, low, high):
        raise ValueError(f"{activation}: no ellipse of ρ = {float(rho):g} about [{float(low):g}, {float(high):g}]")
    with working():
        center, half = (arb(low) + high) / 2, (arb(high) - low) / 2
        wide, tall = half * (rho + 1 / rho) / 2, half * (rho - 1 / rho) / 2
        act = formula(activation)

        def modulus(turn: arb) -> arb:
            sine, cosine = arb.sin_cos_pi(turn)
            found: arb = abs(act(acb(center + wide * cosine, tall * sine)))
            return found

        return half_circle_bound(modulus)


def chebyshev_bounds(activation: str, low: Real, high: Real, orders: Sequence[int]) -> list[float]:
    """Upper bounds of the error of the Chebyshev interpolants of these orders, anywhere on the range.

    4 M ρ⁻ᴺ / (ρ − 1), M ≥ |act| on an ellipse of ρ without poles (Trefethen, Approximation Theory and
    Approximation Practice, theorem 8.2; at the N + 1 zeros of T_{N+1} a Tₖ of k > N equals some ±Tⱼ, or 0, too).
    The least over a few ellipses. Raises ValueError as `bernstein_radius` does, or for bad orders.
    """
    checked_orders(orders)
    largest = bernstein_radius(activation, low, high)
    best = [math.inf] * len(orders)
    with working():
        top = largest.log() if largest.is_finite() else arb(4)
    for share in ELLIPSES:
        with working():
            rho = (top * share).exp().lower()
        m = ellipse_bound(activation, low, high, rho)
        with working():
            best = [min(b, upper(4 * m * rho**-n / (rho - 1))) for b, n in zip(best, orders, strict=True)]
    return best
