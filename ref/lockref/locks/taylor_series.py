"""Taylor series of the activations of neural networks, by exact recurrences, with radius and remainder.

An activation goes by the name of its operation in `lockref.autodiff.ops`; aₙ is act⁽ⁿ⁾(t) / n!.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, gammaln, ndtr, zeta

from lockref.autodiff.ops.activations import TANH_CUBE as CUBE
from lockref.autodiff.ops.activations import TANH_GAIN as GAIN

Array = NDArray[np.float64]


def _sigmoid_of(p: Array, slope: Sequence[ArrayLike], order: int) -> Array:
    """Series of σ(p(t + h)) in h, given p(t) and the coefficients of p'(t + h): s' = s (1 − s) p'.

    1 − s has the coefficients −sₙ (n ≥ 1) and 1 − s₀ = σ(−p), so nothing cancels where σ saturates.
    """
    s: Array = np.empty((order + 1, *p.shape))
    product = np.empty_like(s)
    s[0], complement = expit(p), expit(-p)
    product[0] = s[0] * complement
    for n in range(order):
        if n:
            product[n] = s[n] * (complement - s[0]) - np.sum(s[1:n] * s[n - 1 : 0 : -1], axis=0)
        s[n + 1] = sum(product[n - j] * v for j, v in enumerate(slope[: n + 1])) / (n + 1)
    return s


def _normal_cdf(t: Array, order: int) -> Array:
    """Series of Φ(t + h): Φ' = φ and φ' = −x φ, so (n + 1) φₙ₊₁ = −(t φₙ + φₙ₋₁) and n Φₙ = φₙ₋₁."""
    out = np.empty((order + 1, *t.shape))
    out[0] = ndtr(t)
    before, density = np.zeros_like(t), np.exp(-0.5 * t * t) / np.sqrt(2 * np.pi)
    for n in range(order):
        out[n + 1] = density / (n + 1)
        before, density = density, -(t * density + before) / (n + 1)
    return out


def _tanh(t: Array, order: int) -> Array:
    """tanh x = 2 σ(2x) − 1."""
    out = 2 * _sigmoid_of(2 * t, [2.0], order)
    out[0] = np.tanh(t)
    return out


def _gelu_tanh_gate(t: Array, order: int) -> Array:
    """σ(p) with p = 2 √(2/π) (x + 0.044715 x³), a cubic in h."""
    slope: list[ArrayLike] = [2 * GAIN * (1 + 3 * CUBE * t * t), 12 * GAIN * CUBE * t, 6 * GAIN * CUBE]
    return _sigmoid_of(2 * GAIN * t * (1 + CUBE * t * t), slope, order)


def _times_x(gate: Callable[[Array, int], Array]) -> Callable[[Array, int], Array]:
    """Series of x g(x) about t: aₙ = t gₙ + gₙ₋₁."""

    def both(t: Array, order: int) -> Array:
        g = gate(t, order)
        out: Array = t * g
        out[1:] += g[:-1]
        return out

    return both


def _logistic(t: Array, order: int) -> Array:
    return _sigmoid_of(t, [1.0], order)


_SERIES: dict[str, Callable[[Array, int], Array]] = {
    "silu": _times_x(_logistic),
    "gelu_erf": _times_x(_normal_cdf),
    "gelu_tanh": _times_x(_gelu_tanh_gate),
    "tanh": _tanh,
    "sigmoid": _logistic,
}


def _gelu_tanh_radius(t: Array) -> Array:
    """Distance to the nearest x with √(2/π) (x + 0.044715 x³) = iπ(k + ½), by Cardano's formula.

    With A² = 4/(3·0.044715), x = A sinh y turns the cubic into sinh 3y = 3 iπ(k + ½) / (A √(2/π)).
    A nearer pole than that of k = 0 has |x| ≤ R = |t| + its distance, which bounds its k.
    """
    amplitude = np.sqrt(4 / (3 * CUBE))
    # complex arithmetic on the axis itself: arcsinh's branch choice only permutes the three roots
    turns = 2j * np.pi * np.arange(3)

    def distance(count: int) -> Array:
        heights = 3j * np.pi * (np.arange(count) + 0.5) / (amplitude * GAIN)
        poles = amplitude * np.sinh((np.arcsinh(heights)[:, None] + turns) / 3)
        near: Array = np.min(np.abs(t[..., None] - poles.reshape(-1)), axis=-1)
        return near

    reach = np.max(np.abs(t) + distance(1), initial=0.0)
    return distance(int(GAIN * reach * (1 + CUBE * reach**2) / np.pi) + 1)


_RADII: dict[str, Callable[[Array], Array]] = {
    "silu": lambda t: np.hypot(t, np.pi),
    "gelu_erf": lambda t: np.full_like(t, np.inf),
    "gelu_tanh": _gelu_tanh_radius,
    "tanh": lambda t: np.hypot(t, np.pi / 2),
    "sigmoid": lambda t: np.hypot(t, np.pi),
}


def checked(activation: str, t: ArrayLike) -> Array:
    """Expansion points in float64; ValueError for an unknown activation or a value that is not finite."""
    if activation not in _SERIES:
        raise ValueError(f"no activation {activation!r}: choose one of {', '.join(_SERIES)}")
    return finite("expansion point", t)


def finite(what: str, x: ArrayLike) -> Array:
    """x in float64; ValueError, naming what it is, unless every value is finite."""
    out = np.asarray(x, np.float64)
    if not np.all(np.isfinite(out)):
        raise ValueError(f"{what} of shape {out.shape} has a value that is not finite; all must be")
    return out


def coefficients(activation: str, t: ArrayLike, order: int) -> Array:
    """Normalized derivatives act⁽ⁿ⁾(t) / n!, n = 0..order: t (…) → float64 (order + 1, …).

    By power-series recurrences, without differences or symbolic algebra. Raises ValueError for an
    unknown activation, a negative order or a t that is not finite.
    """
    points = checked(activation, t)
    if order < 0:
        raise ValueError(f"the order is {order}; it must be at least 0")
    return _SERIES[activation](points, order)


def radius(activation: str, t: ArrayLike) -> Array:
    """Radius of convergence about t, the distance to the nearest pole: √(t² + π²) for silu, whose
    poles are ±iπ(2k + 1); ∞ for gelu_erf, which is entire. t (…) → float64 (…).

    Raises ValueError for an unknown activation or a t that is not finite.
    """
    points = checked(activation, t)
    return _RADII[activation](points)


def partial_sums(activation: str, z: ArrayLike, center: ArrayLike, orders: Sequence[int]) -> list[Array]:
    """S_N(z) = Σ_{n ≤ N} act⁽ⁿ⁾(z0)/n! (z − z0)ⁿ elementwise, one array like z for each N of `orders`.

    z (…, m); the center z0 broadcasts to it. Raises ValueError for orders that are not increasing
    from 0 on, an unknown activation or values that are not finite.
    """
    if not orders or orders[0] < 0 or list(orders) != sorted(set(orders)):
        raise ValueError(f"orders {list(orders)}: give at least one, from 0 on, increasing")
    values, found = finite("pre-activations", z), []
    step = values - np.asarray(center, np.float64)
    power, total = np.ones(values.shape), np.zeros(values.shape)
    for n, term in enumerate(coefficients(activation, center, orders[-1])):
        total += term * power
        power *= step
        if n in orders:
            found.append(total.copy())
    return found


def _pole_sum(spacing: float, unit_residues: bool) -> Callable[[Array, Array, int], Array]:
    """Bound for functions with poles p = ±i spacing (k + ½), of residue 1 or p, at real z.

    R_N(z) = Σ_p res_p / (z − p) · ((z − t)/(p − t))^(N+1) for N ≥ 1, and |z − p| ≥ |p|: with residue p each
    pole adds at most (|z − t|/|p − t|)^(N+1), with residue 1 a |p|-th of it.
    """

    def bound(t: Array, reach: Array, order: int) -> Array:
        heights = spacing * (np.arange(_POLE_PAIRS) + 0.5)
        weights = 1 / heights if unit_residues else np.ones_like(heights)
        near: Array = np.sum(weights * (reach[..., None] / np.hypot(t[..., None], heights)) ** (order + 1), axis=-1)
        # beyond: |p − t| ≥ |p|, and Σ_{k ≥ K} (k + ½)^-s is Hurwitz's zeta function
        size = spacing if unit_residues else 1.0
        far: Array = (reach / spacing) ** (order + 1) / size * zeta(order + 1 + unit_residues, _POLE_PAIRS + 0.5)
        total: Array = 2 * (near + far)
        return total

    return bound


_POLE_PAIRS = 64  # summed one by one; those beyond are bounded together
_CRAMER = 1.0865  # |Heₙ(x)| exp(−x²/4) ≤ 1.0865 √n!: Cramér's inequality (Abramowitz & Stegun 22.14.17)


def _gelu_erf_remainder(t: Array, reach: Array, order: int) -> Array:
    """Lagrange with n = N + 1: aₙ = x Φₙ + Φₙ₋₁, Φₙ = φ⁽ⁿ⁻¹⁾/n!, |φ⁽ᵏ⁾| ≤ 1.0865 √(k!/2π) exp(−x²/4), and
    |x| exp(−x²/4) ≤ √(2/e)."""
    n = order + 1
    first = np.sqrt(2 / np.e) * np.exp(0.5 * gammaln(n) - gammaln(n + 1))
    second = np.exp(0.5 * gammaln(n - 1) - gammaln(n))
    out: Array = _CRAMER / np.sqrt(2 * np.pi) * (first + second) * reach**n + 0 * t
    return out


_REMAINDERS: dict[str, Callable[[Array, Array, int], Array]] = {
    "silu": _pole_sum(2 * np.pi, unit_residues=False),
    "sigmoid": _pole_sum(2 * np.pi, unit_residues=True),
    "tanh": _pole_sum(np.pi, unit_residues=True),
    "gelu_erf": _gelu_erf_remainder,
}


def remainder_bound(activation: str, t: ArrayLike, reach: ArrayLike, order: int) -> Array:
    """Upper bound of |act(z) − S_N(z)| for every real |z − t| ≤ reach, N = order ≥ 1: (…) → float64 (…).

    silu, of poles p = ±iπ(2k+1) and residues p: 2 Σ_k (reach / √(t² + π²(2k+1)²))^(N+1), inside the radius
    and outside. sigmoid and tanh likewise; gelu_erf by Cramér's inequality. Raises ValueError for another
    activation, an order below 1, a negative reach, or values that are not finite.
    """
    points, q = checked(activation, t), finite("reach", reach)
    if activation not in _REMAINDERS:
        raise ValueError(f"no closed bound for {activation}: choose one of {', '.join(_REMAINDERS)}")
    if order < 1:
        raise ValueError(f"the order is {order}; the bound needs at least 1")
    if np.any(q < 0):
        raise ValueError(f"reach {float(np.min(q)):g} is negative; it is a distance")
    points, q = np.broadcast_arrays(points, q)
    return _REMAINDERS[activation](points, q, order)
