"""Operators that are not elementwise: SLERP, task singular vectors (TSV), and centered low-rank sums (CART)."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import svd

from lockref.merging.settings import Cart, Slerp, Tsv

Matrix = NDArray[Any]


def slerp_coefficients(x: NDArray[Any], y: NDArray[Any], t: float, rule: Slerp) -> tuple[float, float]:
    """(c_x, c_y) of the point c_x x + c_y y at t on the arc between two tensors of one shape."""
    norms = [float(np.linalg.norm(v)) for v in (x, y)]
    u, v = (a.ravel().astype(np.float64) / (n or 1.0) for a, n in zip((x, y), norms, strict=True))
    # |u ∓ v|² = 2 (1 ∓ cos): exact where 1 − cos cancels and arccos loses half the digits.
    apart, opposed = float(np.linalg.norm(u - v)), float(np.linalg.norm(u + v))
    if not any(norms) or (all(norms) and min(apart, opposed) ** 2 <= 2 * rule.collinear):
        return 1 - t, t
    angle = 2 * float(np.arctan2(apart, opposed))
    return float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle))


def tsv(updates: Sequence[Matrix], rule: Tsv, weights: NDArray[Any]) -> tuple[Matrix, tuple[int, ...]]:
    """scale · U⊥ diag(w σ) V⊥ᵀ, and the triples used of each update (m, n)."""
    share = min(updates[0].shape) // len(updates)
    parts = [triples(update) for update in updates]
    u = np.concatenate([p[0][:, :share] for p in parts], axis=1)
    sigma = np.concatenate([w * p[1][:share] for p, w in zip(parts, weights.astype(u.dtype), strict=True)])
    v = np.concatenate([p[2][:share] for p in parts])
    return rule.scale * (polar(u) * sigma) @ polar(v), (share,) * len(updates)


def cart(updates: Sequence[Matrix], rule: Cart, weights: NDArray[Any]) -> tuple[Matrix, tuple[int, ...]]:
    """mean + scale · Σ_i trunc_k(w_i δ_i − mean), the mean that of w_i δ_i, and k for each update (m, n)."""
    least = min(updates[0].shape)
    k = max(1, (ceil if rule.rounding == "up" else int)(rule.rank * least))
    scaled = np.stack([w * update for w, update in zip(weights.astype(updates[0].dtype), updates, strict=True)])
    mean = scaled.mean(axis=0)
    parts = [triples(x - mean) for x in scaled]
    return mean + rule.scale * sum((u[:, :k] * s[:k]) @ v[:k] for u, s, v in parts), (k,) * len(updates)


def triples(x: Matrix) -> tuple[Matrix, NDArray[Any], Matrix]:
    """Thin singular value decomposition x = u diag(s) v, s descending."""
    u, s, v = svd(x, full_matrices=False, check_finite=False)
    return u, s, v


def polar(x: Matrix) -> Matrix:
    """The partial isometry nearest to x: u v over its nonzero singular values.

    Unlike an isometry it is determined even where directions repeat: polar([U U]) = [U U]/√2.
    """
    u, s, v = triples(x)
    rank = numerical_rank(s, x.shape)
    return u[:, :rank] @ v[:rank]


def numerical_rank(s: NDArray[Any], shape: tuple[int, ...]) -> int:
    """Singular values above max(m, n) · eps · s_1: what round-off cannot have made."""
    return int(np.count_nonzero(s > max(shape) * np.finfo(s.dtype).eps * s[0])) if s.size else 0
