"""Anchors: undoing a transform of weights by comparing the release with the public model they were fine-tuned from.

The owner fine-tunes W_0 into W = W_0 + τ and releases T W. An attacker who has W_0 estimates T from T(W_0 + τ) ≈ T W_0
(arXiv 2606.30360 does so for related locks). All matrices act on rows here, as checkpoints store them: W (…, c, n).
With H = W_0 W_0ᵀ, E = τ W_0ᵀ and F the relative error T̂ = T (I + F), the bounds are

    T orthogonal    ‖F‖_F ≤ 2 ‖τ‖_F / σ_min(W_0), and ≤ 2 ‖E‖_F / (σ_min(H) + σ_min(H + E)); W itself to 2 ‖τ‖_F
    T invertible    ‖F‖_F ≤ ‖E (H + ρ)⁻¹‖_F + ρ ‖(H + ρ)⁻¹‖_F;   for ρ = 0 at most ‖τ‖_F / σ_min(W_0)
    T = signs       exact on a plane where ‖τ‖_F < ‖W_0‖_F
    T permutes      exact where every row of τ is shorter than half the distance of any two rows of W_0

and 2√c in the first line where that is less (proofs: MB-ANCHOR).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float64]


def procrustes(released: Array, base: Array) -> Array:
    """The orthogonal T (…, c, c) that brings T base nearest to released, both (…, c, n): a polar factor."""
    cross = _cross(released, base)
    left, _, right = np.linalg.svd(cross)
    turn: Array = left @ right
    return turn


def procrustes_bound(base: Array, task: Array) -> Array:
    """‖T̂ − T‖_F is at most this, (…), whatever T is; `task` is τ, both (…, c, n)."""
    h, e = _cross(base, base), _cross(task, base)
    length = np.linalg.norm(task, axis=(-2, -1))
    least = np.linalg.svd(base, compute_uv=False)[..., -1] if base.shape[-1] >= base.shape[-2] else 0.0 * length
    smallest = least**2 + np.linalg.svd(h + e, compute_uv=False)[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = 2 * length / least, 2 * np.linalg.norm(e, axis=(-2, -1)) / smallest
    capped: Array = np.fmin(np.fmin(*bounds), 2 * np.sqrt(base.shape[-2]))
    return capped


def least_squares(released: Array, base: Array, ridge: float = 0.0) -> Array:
    """T (…, c, c) that minimizes ‖T base − released‖² + ρ ‖T‖², ρ = ridge · tr(H)/c.

    Raises ValueError for a negative ridge, and for a base of dependent rows without one.
    """
    regular = _regular(base, ridge)
    estimate: Array = np.swapaxes(np.linalg.solve(regular, np.swapaxes(_cross(released, base), -1, -2)), -1, -2)
    return estimate


def least_squares_bound(base: Array, task: Array, ridge: float = 0.0) -> Array:
    """‖T⁻¹ T̂ − I‖_F is at most this, (…), whatever the invertible T is."""
    regular = _regular(base, ridge)
    noise = np.linalg.norm(np.linalg.solve(regular, np.swapaxes(_cross(task, base), -1, -2)), axis=(-2, -1))
    shrunk = np.linalg.norm(np.linalg.inv(regular), axis=(-2, -1))
    bound: Array = noise + _rho(base, ridge) * shrunk
    return bound


def plane_signs(released: Array, base: Array) -> Array:
    """±1 for each rotary plane, (…, c/2): the sign of the inner product of its two rows (…, c, n); +1 for 0."""
    inner = np.einsum("...ij,...ij->...i", released, base)
    half = inner.shape[-1] // 2
    signs: Array = np.where(inner[..., :half] + inner[..., half:] < 0, -1.0, 1.0)
    return signs


def signs_are_safe(base: Array, task: Array) -> NDArray[np.bool_]:
    """For each plane (…, c/2): is ‖τ‖_F < ‖W_0‖_F there, so that its sign comes out right?"""
    lengths = (np.sum(w * w, axis=-1) for w in (task, base))
    half = base.shape[-2] // 2
    moved, size = (x[..., :half] + x[..., half:] for x in lengths)
    return np.asarray(moved < size)


def match_rows(released: Array, base: Array) -> NDArray[np.intp]:
    """order (m,) with released ≈ base[order], both (m, n), for the greatest sum of inner products (Hungarian method).

    `released[argsort(order)]` has the rows in the base's order again.
    """
    _, order = linear_sum_assignment(released @ base.T, maximize=True)
    return np.asarray(order, np.intp)


def rows_are_safe(base: Array, task: Array) -> bool:
    """Is every row of τ shorter than half the distance of any two rows of W_0, both (m, n)?"""
    size = np.sum(base * base, axis=-1)
    apart = size[:, None] + size - 2 * base @ base.T
    np.fill_diagonal(apart, np.inf)
    return bool(4 * np.max(np.sum(task * task, axis=-1)) < np.min(apart))


def _cross(a: Array, b: Array) -> Array:
    if np.shape(a) != np.shape(b) or np.ndim(a) < 2:
        raise ValueError(f"released {np.shape(a)} and base {np.shape(b)} must be matrices of one shape")
    product: Array = a @ np.swapaxes(b, -1, -2)
    return product


def _rho(base: Array, ridge: float) -> Array:
    if not 0 <= ridge < np.inf:
        raise ValueError(f"ridge is {ridge}; it must not be negative")
    mean: Array = np.sum(base * base, axis=(-2, -1)) / base.shape[-2]
    return ridge * mean


def _regular(base: Array, ridge: float) -> Array:
    """H + ρ I, once it is known to have an inverse in this precision."""
    c = base.shape[-2]
    regular: Array = _cross(base, base) + _rho(base, ridge)[..., None, None] * np.eye(c)
    condition = float(np.max(np.linalg.cond(regular)))
    if not condition * c * np.finfo(base.dtype).eps < 1:
        raise ValueError(f"base {base.shape}: its rows are dependent (W_0 W_0ᵀ has condition number {condition:.3g}); "
                         "give a positive ridge")  # fmt: skip
    return regular
