"""MergeBarrier's feed-forward lock: an activation replaced by its Taylor polynomial (arXiv 2511.10712).

Instead of W and the activation, y = W act(z + b), the owner releases the arrays
Ŵⁿ = W diag(act⁽ⁿ⁾(z0 + b) / n!), n = 0..N, and a user evaluates Σₙ Ŵⁿ (z − z0)ⁿ; z0 is the midpoint
of the observed range of z, one per hidden unit. In a SwiGLU layer z = W_gate x, and W_up x multiplies
inside. An activation goes by the name of its operation in `lockref.autodiff.ops`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtr

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


def _checked(activation: str, t: ArrayLike) -> Array:
    if activation not in _SERIES:
        raise ValueError(f"no activation {activation!r}: choose one of {', '.join(_SERIES)}")
    return _finite("expansion point", t)


def _finite(what: str, x: ArrayLike) -> Array:
    out = np.asarray(x, np.float64)
    if not np.all(np.isfinite(out)):
        raise ValueError(f"{what} of shape {out.shape} has a value that is not finite; all must be")
    return out


def coefficients(activation: str, t: ArrayLike, order: int) -> Array:
    """Normalized derivatives act⁽ⁿ⁾(t) / n!, n = 0..order: t (…) → float64 (order + 1, …).

    By power-series recurrences, without differences or symbolic algebra. Raises ValueError for an
    unknown activation, a negative order or a t that is not finite.
    """
    points = _checked(activation, t)
    if order < 0:
        raise ValueError(f"the order is {order}; it must be at least 0")
    return _SERIES[activation](points, order)


def radius(activation: str, t: ArrayLike) -> Array:
    """Radius of convergence about t, the distance to the nearest pole: √(t² + π²) for silu, whose
    poles are ±iπ(2k + 1); ∞ for gelu_erf, which is entire. t (…) → float64 (…).

    Raises ValueError for an unknown activation or a t that is not finite.
    """
    points = _checked(activation, t)
    return _RADII[activation](points)


def partial_sums(activation: str, z: ArrayLike, center: ArrayLike, orders: Sequence[int]) -> list[Array]:
    """S_N(z) = Σ_{n ≤ N} act⁽ⁿ⁾(z0)/n! (z − z0)ⁿ elementwise, one array like z for each N of `orders`.

    z (…, m); the center z0 broadcasts to it. Raises ValueError for orders that are not increasing
    from 0 on, an unknown activation or values that are not finite.
    """
    if not orders or orders[0] < 0 or list(orders) != sorted(set(orders)):
        raise ValueError(f"orders {list(orders)}: give at least one, from 0 on, increasing")
    values, found = _finite("pre-activations", z), []
    step = values - np.asarray(center, np.float64)
    power, total = np.ones(values.shape), np.zeros(values.shape)
    for n, term in enumerate(coefficients(activation, center, orders[-1])):
        total += term * power
        power *= step
        if n in orders:
            found.append(total.copy())
    return found


def observed_range(z: ArrayLike) -> tuple[Array, Array]:
    """Least and greatest value of each hidden unit: z (…, m) → two arrays (m,).

    Raises ValueError where z is empty or not finite.
    """
    values = _finite("pre-activations", z)
    if values.ndim < 1 or values.size == 0:
        raise ValueError(f"pre-activations of shape {values.shape}: expected (…, m), at least one row")
    rows = values.reshape(-1, values.shape[-1])
    return rows.min(axis=0), rows.max(axis=0)


@dataclass(frozen=True)
class TaylorLayer:
    """What the owner releases: arrays Ŵⁿ (N + 1, d, m) and one expansion point z0 per unit, (m,)."""

    arrays: Array
    center: Array

    def __call__(self, z: Array, factor: ArrayLike = 1.0) -> Array:
        """Σₙ Ŵⁿ ((z − z0)ⁿ ∘ factor): z (…, m) → (…, d); factor is W_up x in a SwiGLU layer."""
        step = z - self.center
        power = np.broadcast_to(np.asarray(factor, z.dtype), z.shape)
        out: Array = power @ self.arrays[0].T
        for array in self.arrays[1:]:
            power = power * step
            out += power @ array.T
        return out


def reparameterize(
    weight: ArrayLike,
    activation: str,
    low: ArrayLike,
    high: ArrayLike,
    order: int,
    center: ArrayLike | None = None,
    bias: ArrayLike = 0.0,
) -> TaylorLayer:
    """Ŵⁿ = W diag(act⁽ⁿ⁾(z0 + b) / n!), n = 0..order, about z0 = (low + high) / 2 or a given center.

    weight (d, m) multiplies the activation; low and high (m,) are the observed range of z, bias is
    (m,) or one number. Raises ValueError for a negative order, an unknown activation, shapes that
    disagree, values that are not finite, low > high, or a center outside the range.
    """
    w, lower, upper = _finite("weight", weight), _finite("low", low), _finite("high", high)
    if w.ndim != 2 or lower.shape != w.shape[1:] or upper.shape != w.shape[1:]:
        raise ValueError(f"weight {w.shape}, low {lower.shape}, high {upper.shape}: expected (d, m), (m,), (m,)")
    if np.any(lower > upper):
        raise ValueError(f"unit {int(np.argmax(lower > upper))}: low is above high; swap them")
    z0 = lower + (upper - lower) / 2 if center is None else _finite("center", center)
    if z0.shape != lower.shape:
        raise ValueError(f"center has shape {z0.shape}, the units {lower.shape}; they must agree")
    outside = (z0 < lower) | (z0 > upper)
    if np.any(outside):
        j = int(np.argmax(outside))
        raise ValueError(
            f"unit {j}: center {z0[j]:g} is outside the range [{lower[j]:g}, {upper[j]:g}]; move it inside"
        )
    b = _finite("bias", bias)
    if b.shape not in ((), z0.shape):
        raise ValueError(f"bias has shape {b.shape}, the units {z0.shape}; give one number for each, or one for all")
    derivatives = coefficients(activation, z0 + b, order)
    return TaylorLayer(w * derivatives[:, None, :], z0)
