"""Certified errors of polynomials of silu about 0, against the range and against the order."""

import math
from collections.abc import Callable

from lockproofs import balls
from lockproofs.claim import Curve, Plot
from lockproofs.enclosures import chebyshev_bounds, chebyshev_interpolant, greatest_error, taylor_polynomial
from lockref.locks.taylor_model import ACTIVATION

ORDERS = (4, 8, 16)
RANGES = tuple(n / 2 for n in range(1, 17))
FIXED = (2.0, 4.0, 8.0)
UP_TO = tuple(range(2, 22, 2))
Error = Callable[[int, float], float]


def taylor_error(order: int, reach: float) -> float:
    """At least the greatest error on [−reach, reach], and at most 2 % more than it."""
    return greatest_error(ACTIVATION, taylor_polynomial(ACTIVATION, 0, order), -reach, reach)[1]


def taylor_bound(order: int, reach: float) -> float:
    """The stated bound, without a look at the polynomial: infinite outside the radius of convergence."""
    if reach >= math.pi:
        return math.inf
    return balls.sup_bounds(ACTIVATION, 0, (order,), reach)[0]


def chebyshev_error(order: int, reach: float) -> float:
    """At least the greatest error on [−reach, reach], and at most 2 % more than it."""
    return greatest_error(ACTIVATION, chebyshev_interpolant(ACTIVATION, -reach, reach, order), -reach, reach)[1]


def chebyshev_bound(order: int, reach: float) -> float:
    """4Mρ⁻ᴺ/(ρ − 1)."""
    return chebyshev_bounds(ACTIVATION, -reach, reach, (order,))[0]


def certified(basis: str, error: Error, bound: Error) -> list[Plot]:
    """Against the range for three orders, and against the order for three ranges."""
    curves = (("error", error), ("bound", bound))
    by_range = [
        Curve(name=f"N = {n}, {what}", x=list(RANGES), y=[f(n, h) for h in RANGES])
        for n in ORDERS
        for what, f in curves
    ]
    by_order = [
        Curve(name=f"h = {h:g}, {what}", x=list(UP_TO), y=[f(n, h) for n in UP_TO]) for h in FIXED for what, f in curves
    ]
    title = f"{ACTIVATION} on ±h, {basis}: certified greatest error against the"
    return [
        Plot(title=f"{title} range", x_label="half-range h", y_label="error", x_log=True, y_log=True, curves=by_range),
        Plot(title=f"{title} order", x_label="order N", y_label="error", y_log=True, curves=by_order),
    ]
