"""MergeBarrier's projection at scale: a randomized eigendecomposition whose error is known afterwards.

Range finder with power iterations and Rayleigh–Ritz (Halko, Martinsson & Tropp 2011, Algorithms 4.4 and 5.3). The
bound on P needs no assumption about the random numbers: it is computed from the residual of what came out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lockref.locks.attention import Governing, Tensors, governing, gram_sum
from lockref.models.qwen3_config import Qwen3Config

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Leading:
    """Approximations of the k greatest eigenpairs of symmetric matrices s (…, c, c)."""

    vectors: Array  # (…, c, k), orthonormal columns
    values: Array  # (…, k), Ritz values, greatest first: none exceeds the eigenvalue that it stands for
    residual: Array  # (…): ‖s V − V diag(values)‖_F

    @property
    def projection(self) -> Array:
        """I − 2 V Vᵀ, (…, c, c)."""
        turned: Array = np.eye(self.vectors.shape[-2]) - 2 * self.vectors @ np.swapaxes(self.vectors, -1, -2)
        return turned

    def error_bound(self, next_value: Array) -> Array:
        """‖P̂ − P_k‖_F ≤ 2√2 residual/(Ritz value k − μ), (…), with μ = λ_{k+1} (proof: MB-RSVD).

        The greatest eigenvalue of s compressed to the complement of the vectors will do for μ too. Where the gap is
        not positive all that is known is the distance of two flips of k directions, at most 2 √(2 min(k, c − k)).
        """
        c, k = self.vectors.shape[-2:]
        widest = 2 * np.sqrt(2 * min(k, c - k))
        gap = self.values[..., -1] - next_value
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = np.where(gap > 0, 2 * np.sqrt(2) * self.residual / gap, np.inf)
        capped: Array = np.minimum(bound, widest)
        return capped


def leading_eigenvectors(
    s: Array, k: int, rng: np.random.Generator, *, oversampling: int = 8, power_iterations: int = 2
) -> Leading:
    """The k leading eigenpairs of s (…, c, c), symmetric and positive semidefinite, from k + oversampling directions.

    Raises ValueError where k is not an integer from 1 to c, or a setting is negative.
    """
    c = s.shape[-1]
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= c:
        raise ValueError(f"k is {k!r}; a randomized decomposition needs an integer from 1 to {c}")
    if oversampling < 0 or power_iterations < 0:
        raise ValueError(f"oversampling {oversampling} and power_iterations {power_iterations} must not be negative")
    basis = np.linalg.qr(s @ rng.standard_normal((*s.shape[:-2], c, min(c, k + oversampling))))[0]
    for _ in range(power_iterations):
        basis = np.linalg.qr(s @ basis)[0]
    small = np.swapaxes(basis, -1, -2) @ s @ basis
    values, inner = np.linalg.eigh((small + np.swapaxes(small, -1, -2)) / 2)
    values, vectors = values[..., : -k - 1 : -1], (basis @ inner)[..., : -k - 1 : -1]
    residual = np.linalg.norm(s @ vectors - vectors * values[..., None, :], axis=(-2, -1))
    return Leading(vectors, values, residual)


def randomized_projections(
    tensors: Tensors,
    config: Qwen3Config,
    k: int,
    rng: np.random.Generator,
    matrix: Governing = gram_sum,
    *,
    oversampling: int = 8,
    power_iterations: int = 2,
) -> tuple[Array, Leading]:
    """P (layers, G, c, c) of a model that flips k approximate eigen-directions of each key head, and their residuals.

    The same contract as `locks.attention.projections` with TOPK; `matrix` must be positive semidefinite.
    """
    found = leading_eigenvectors(
        governing(tensors, config, matrix), k, rng, oversampling=oversampling, power_iterations=power_iterations
    )
    return found.projection, found
