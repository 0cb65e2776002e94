"""Extreme eigenvalues of a symmetric matrix that is known only by its products: Lanczos, every vector kept.

After k steps A V = V T + β_k v_{k+1} e_kᵀ with V orthonormal and T tridiagonal. For an eigenpair (θ, s) of T

    ‖A V s − θ V s‖ = |β_k s_k|

so an eigenvalue of A lies within that distance of θ (Parlett, The Symmetric Eigenvalue Problem, theorem 4.5.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

Vector = NDArray[np.float64]  # or rows of them


@dataclass(frozen=True)
class Spectrum:
    """Ritz values θ in descending order, and how far from each an eigenvalue may lie, round-off aside."""

    values: Vector
    residuals: Vector


def lanczos(product: Callable[[Vector], Any], size: int, steps: int, rng: np.random.Generator) -> Spectrum:
    """The spectrum that `steps` products v ↦ A v with a symmetric A of `size` rows show.

    Each new vector is orthogonalized against all before it, twice, so that no eigenvalue is found more often than it
    occurs. Where the vectors span an invariant subspace, a fresh one is drawn: repeated eigenvalues are then found,
    too, and after `size` steps all of them. Raises ValueError for impossible sizes and products that are not finite.
    """
    if not 1 <= steps <= size:
        raise ValueError(f"lanczos: {steps} steps for {size} rows; take 1 … {size}")
    basis = np.empty((steps, size))
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    vector = _unit(rng, basis[:0])
    for k in range(steps):
        basis[k] = vector
        found = np.asarray(product(vector), np.float64)
        if found.shape != vector.shape or not np.all(np.isfinite(found)):
            raise ValueError(f"lanczos: product {k} has shape {found.shape} or is not finite; want {vector.shape}")
        diagonal[k] = vector @ found
        rest = orthogonalized(found, basis[: k + 1])
        beside[k] = np.linalg.norm(rest)
        # below this, what is left is the round-off of the product: the subspace is invariant
        if beside[k] <= size * np.finfo(float).eps * np.linalg.norm(found):
            beside[k] = 0.0
            vector = _unit(rng, basis[: k + 1]) if k + 1 < steps else vector
        else:
            vector = rest / beside[k]
    values, vectors = eigh_tridiagonal(diagonal, beside[:-1])
    return Spectrum(values[::-1], np.abs(beside[-1] * vectors[-1])[::-1])


def orthogonalized(vector: Vector, basis: Vector) -> Vector:
    """`vector` without its part in the span of orthonormal rows; the second time removes what round-off left."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _unit(rng: np.random.Generator, basis: Vector) -> Vector:
    """A random unit vector orthogonal to the rows of `basis`."""
    drawn = orthogonalized(rng.standard_normal((basis.shape[1],)), basis)
    return np.asarray(drawn / np.linalg.norm(drawn))
