"""Undoing MergeBarrier's feed-forward lock from the released coefficients alone (arXiv 2511.10712).

The arrays of one hidden unit are its column of W times a point on a known curve of one parameter: Ŵⁿ_j = W_j cₙ(t_j)
with t_j = z0_j + b_j. Ratios of two orders name t_j, and then any order gives W_j. All orders are used here, each
weighted by what rounding left of it: t_j by a search along the curve and Gauss-Newton steps, W_j by least squares.
Nothing needs order 0; a unit whose pre-activation changed sign has (−1)ⁿ cₙ, one more curve to compare with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockref.attacks.result import AttackResult
from lockref.locks.bases import TAYLOR, Basis
from lockref.locks.taylor_model import ACTIVATION, DOWN, GATE, SERIES, series_layer
from lockref.locks.taylor_series import finite
from lockref.models.qwen3 import Qwen3Config, layer_weights

Array = NDArray[np.float64]

SPAN, SPACING = 20.0, 0.02  # expansion points are sought in [−20, 20], first at this spacing
BLUR = 0.05  # relative error that the first search forgives, so that it sees the right hill from afar
STARTS, STEPS = 4, 12  # hills that are climbed, and steps on each
STRIDE = 0.1  # the longest step
UNIT = float(np.finfo(np.float64).eps) / 2
TINY = float(np.finfo(np.float64).tiny)  # where an activation is 0 to float64, no α helps


@dataclass(frozen=True)
class Found:
    """The weights behind a released layer, (d, m), and of each unit (m,) t, sign, misfit and error bound.

    The misfit is in standard errors; the bound (`_Curve.bound`) is of ‖Ŵ_j − W_j‖/‖W_j‖, for the right t and sign.
    """

    weight: Array
    points: Array
    signs: Array
    misfit: Array
    bound: Array


@dataclass(frozen=True)
class _Curve:
    """Sizes s (K, m) of each unit's arrays along their common direction, how they err, and where they should lie.

    `errors` weigh the orders: rounding to the storage type moved a size by `rounded`, the attacker's own float64 by
    `own`. An array, a vector, was moved by `moved` at most.
    """

    activation: str
    basis: Basis
    scale: Array
    orders: Sequence[int]
    last: int
    sizes: Array
    rounded: Array
    own: Array
    moved: Array

    @property
    def errors(self) -> Array:
        return 2 * self.rounded + self.own

    def at(self, t: Array, sign: ArrayLike) -> Array:
        """cₙ(t) signⁿ for the known orders, (K, …): t (…, m) or (…, 1)."""
        n = np.array(self.orders).reshape(-1, *[1] * np.ndim(t))
        full = self.basis.coefficients(self.activation, t, self.scale, self.last)
        curve: Array = full[list(self.orders)] * np.asarray(sign) ** n
        return curve

    def fit(self, c: Array) -> tuple[Array, Array]:
        """α that brings α c nearest to the sizes, and the misfit Σ ((s − α c)/error)²: c (K, …, m) → (…, m) each."""
        s, e = (x.reshape(len(x), *[1] * (c.ndim - 2), -1) for x in (self.sizes, self.errors))
        alpha = np.sum(s * c / e**2, axis=0) / np.maximum(np.sum((c / e) ** 2, axis=0), TINY)
        return alpha, np.sum(((s - alpha * c) / e) ** 2, axis=0)

    def blurred(self) -> "_Curve":
        """The same with errors that let a coarse search see the valley from afar.

        Around an order's zero the size itself says little about the scale there; the neighbors do.
        """
        padded = np.pad(np.abs(self.sizes), ((1, 1), (0, 0)))
        around = np.maximum(padded[1:-1], np.maximum(padded[:-2], padded[2:]) / 4)
        return replace(self, own=self.own + BLUR * around)

    def slope(self, t: Array, sign: ArrayLike) -> Array:
        """dc/dt by central differences."""
        h = 1e-5 * (1 + np.abs(t))
        change: Array = (self.at(t + h, sign) - self.at(t - h, sign)) / (2 * h)
        return change

    def climb(self, t: Array, sign: Array) -> Array:
        """Gauss-Newton in (α, t) from t (…, m), with derivatives by central differences."""
        e = self.errors.reshape(len(self.errors), *[1] * (t.ndim - 1), -1)
        s = self.sizes.reshape(e.shape)
        for _ in range(STEPS):
            c = self.at(t, sign)
            alpha, _ = self.fit(c)
            slope = alpha * self.slope(t, sign)
            a, b, left = c / e, slope / e, (s - alpha * c) / e
            b = b - a * np.sum(a * b, axis=0) / np.maximum(np.sum(a * a, axis=0), TINY)
            size = np.sum(b * b, axis=0)
            step = np.divide(np.sum(b * left, axis=0), size, out=np.zeros_like(size), where=size > 0)
            t = np.clip(t + np.clip(step, -STRIDE, STRIDE), -SPAN, SPAN)
        return t

    def bound(self, t: Array, sign: Array, searched: bool) -> Array:
        """Of ‖Ŵ_j − W_j‖/‖W_j‖: the round-off of storage times the conditioning of the ratio, (m,).

        *Proof*, to first order in the round-off. With x_n = α cₙ(t)/e_n, e_n the errors that weigh the orders, Ŵ_j is
        the mean of Ŵⁿ_j/cₙ(t) with weights x_n². Rounding moved Ŵⁿ_j by a vector of at most d_n = u |s_n| + √d η, for
        d entries, the unit round-off u and half the least number η of the storage. So the mean is off, relatively, by

            t known:     Σ |x_n| (d_n/e_n) / Σ x_n²,  no more than the greatest d_n/|s_n|: the ratio's condition is 1;
            t searched:  besides |Σ x_n y_n| / Σ x_n² times |δt|, where y = ∂x/∂t and
                         |δt| ≤ Σ |y⊥_n| (d_n/e_n) / Σ y⊥_n²,  y⊥ = y − x Σxy/Σx²,

        since δt is the coefficient of y⊥ where least squares fit the d_n/e_n by x and y⊥, which are orthogonal. Where t
        was searched, d_n has the attacker's own error in cₙ(t) besides; where it is known, owner and attacker compute
        the same bits. The mean's products have one sign: 2K + 3 roundings of float64 for K orders. ∎
        """
        c = self.at(t, sign)
        alpha, _ = self.fit(c)
        x, moved = alpha * c / self.errors, (self.moved + searched * self.own) / self.errors
        size = np.sum(x * x, axis=0)
        limit = np.sum(np.abs(x) * moved, axis=0) / size + (2 * len(c) + 3) * UNIT
        if searched:
            y = alpha * self.slope(t, sign) / self.errors
            shared = np.sum(x * y, axis=0) / size
            rest = y - x * shared
            shift = np.sum(np.abs(rest) * moved, axis=0) / np.maximum(np.sum(rest * rest, axis=0), TINY)
            limit = limit + np.abs(shared) * shift
        return np.asarray(limit)


def recover(
    arrays: ArrayLike,
    activation: str,
    orders: Sequence[int] | None = None,
    points: ArrayLike | None = None,
    basis: Basis = TAYLOR,
    scale: ArrayLike = 1.0,
    dtype: str = "float64",
    last: int | None = None,
) -> Found:
    """W of arrays Ŵⁿ = W diag(signⁿ cₙ(t)), (K, d, m), for the given orders (all from 0 on, if not given).

    `points` (m,) are z0 + b up to the sign of each unit; without them they are sought in [−20, 20]. `dtype` is
    the precision in which the arrays were saved, `last` the layer's order N if its last arrays are missing
    (interpolation depends on it). Two points may share what few orders there are: check `misfit` with more. Without
    orders 0 and 1, t and −t with the other sign are one curve for silu and gelu, and W is the same.
    Raises ValueError for fewer than two orders, or three with points unknown, shapes that disagree, values that are not
    finite, an unknown activation or dtype, or a unit whose arrays are all zero.
    """
    released = finite("arrays", arrays)
    if released.ndim != 3:
        raise ValueError(f"arrays of shape {released.shape}: expected (orders, d, m)")
    known = list(range(len(released))) if orders is None else list(orders)
    if len(known) != len(released) or len(set(known)) != len(known) or min(known, default=-1) < 0:
        raise ValueError(f"orders {known} for {len(released)} arrays: name each array's order, once")
    needed = 3 if points is None else 2
    if len(known) < needed:
        raise ValueError(f"orders {known}: at least {needed} are needed to tell points and signs")
    if last is not None and last < max(known):
        raise ValueError(f"orders {known} of a layer of order {last}; no array is of a higher order than its layer")
    zero = ~np.any(released, axis=(0, 1))
    if np.any(zero):
        raise ValueError(f"unit {int(np.argmax(zero))}: its coefficients are all zero; leave it out, its weights are 0")
    h = np.broadcast_to(finite("scale", scale), released.shape[2:])
    curve = _curve(released, activation, basis, h, known, max(known) if last is None else last, dtype)
    if points is None:
        t, signs = _search(curve)
    else:
        at = finite("points", points)
        if at.shape != released.shape[2:]:
            raise ValueError(f"points have shape {at.shape}, the units {released.shape[2:]}; they must agree")
        t, signs = _better(curve, np.stack([at, -at]), np.array([[1.0], [-1.0]]))
    c = curve.at(t, signs)
    precision = c / curve.errors**2
    weight = np.sum(released * precision[:, None, :], axis=0) / np.sum(precision * c, axis=0)
    misfit = np.sqrt(curve.fit(c)[1] / len(known))
    return Found(weight, t, signs, misfit, curve.bound(t, signs, points is None))


def _curve(arrays: Array, activation: str, basis: Basis, h: Array, orders: list[int], last: int, dtype: str) -> _Curve:
    """Projects each unit's arrays on the direction they share, and says how far rounding may have moved them."""
    try:
        precision = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError):
        raise ValueError(f"no precision {dtype!r}: choose float64, float32, float16 or bfloat16") from None
    lengths = np.linalg.norm(arrays, axis=1)
    units = arrays / np.where(lengths > 0, lengths, 1)[:, None, :]
    lead = np.take_along_axis(units, np.argmax(lengths, axis=0)[None, None, :], axis=0)
    direction = np.sum(units * np.sign(np.sum(units * lead, axis=1, keepdims=True)), axis=0)
    direction /= np.linalg.norm(direction, axis=0)
    sizes = np.sum(arrays * direction, axis=1)
    # rounding each entry, and underflow; the attacker's own float64, whose coefficients are sums of as many terms
    unit, least = float(precision.eps) / 2, float(precision.smallest_subnormal) / 2
    rounded, moved = (unit * np.abs(sizes) + least * times for times in (1.0, arrays.shape[1] ** 0.5))
    own = 2 * UNIT * (np.array(orders)[:, None] + 1) * np.max(np.abs(sizes), axis=0)
    return _Curve(activation, basis, h, orders, last, sizes, rounded, own, moved)


def _better(curve: _Curve, t: Array, sign: Array) -> tuple[Array, Array]:
    """Of candidates (C, m) or (C, 1) for each unit the one of least misfit."""
    misfit = curve.fit(curve.at(t, sign))[1]
    best = np.argmin(misfit, axis=0)[None]
    shapes = np.broadcast_shapes(t.shape, misfit.shape)
    t, sign = (np.take_along_axis(np.broadcast_to(x, shapes), best, axis=0)[0] for x in (t, sign))
    return t, sign


def _search(curve: _Curve) -> tuple[Array, Array]:
    """Along both curves: the best few of a grid for each unit, then uphill from there."""
    grid = np.arange(-SPAN, SPAN + SPACING, SPACING)[:, None]
    blurred = curve.blurred()
    found_t, found_sign = [], []
    for sign in (1.0, -1.0):
        misfit = blurred.fit(blurred.at(grid, sign))[1]
        hollow = misfit.copy()  # only local minima are starts: the best points of one hill are one start
        hollow[1:-1][(misfit[1:-1] > misfit[:-2]) | (misfit[1:-1] > misfit[2:])] = np.inf
        starts = grid[np.argsort(hollow, axis=0)[:STARTS], 0]
        signs = np.full_like(starts, sign)
        found_t.append(curve.climb(blurred.climb(starts, signs), signs))
        found_sign.append(signs)
    return _better(curve, np.concatenate(found_t), np.concatenate(found_sign))


def recover_model(
    released: Mapping[str, NDArray[Any]], config: Qwen3Config, basis: Basis = TAYLOR, dtype: str = "float64"
) -> AttackResult:
    """The checkpoint behind one locked by `locks.taylor_model`, from its tensors alone: one guess.

    Users need z0 and h to evaluate the layer, so t is known and only signs are sought. Signs of W_gate's rows are
    undone; a sign shared by a row of W_up and a column of W_down is left, since it changes no output. Units whose
    arrays are zero come back as zeros. `found` holds "misfit" and "bound", one array (units that are not) per layer.
    Raises ValueError for tensors that are not of such a checkpoint.
    """
    tensors = {name: np.asarray(w) for name, w in released.items() if SERIES not in name}
    misfits, bounds = [], []
    for i in range(config.num_hidden_layers):
        prefix = f"model.layers.{i}."
        try:
            layer = series_layer(layer_weights(released, i), basis)
        except KeyError as error:
            raise ValueError(
                f"layer {i} has no tensor {error.args[0]!r}: this is no Taylor-locked checkpoint"
            ) from None
        arrays = finite(f"layer {i}: arrays", layer.arrays)
        alive = np.any(arrays, axis=(0, 1))
        found = recover(arrays[:, :, alive], ACTIVATION, None, layer.center[alive], basis, layer.scale[alive], dtype)
        weight, signs = np.zeros(arrays.shape[1:]), np.ones(arrays.shape[2])
        weight[:, alive], signs[alive] = found.weight, found.signs
        tensors[prefix + DOWN] = weight
        tensors[prefix + GATE] = tensors[prefix + GATE] * signs[:, None]
        misfits.append(found.misfit)
        bounds.append(found.bound)
    return AttackResult("taylor_coefficients", ("released weights",), (tensors,), {"misfit": misfits, "bound": bounds})
