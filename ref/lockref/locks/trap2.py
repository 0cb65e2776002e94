"""Trap²: an update trained so that rescaling it hurts (arXiv 2601.21898).

Merging rescales updates, so the loss at scale 1 is minimized while it is raised at other scales:
J(Δ) = L(W₀ + Δ) − λ E_s[w(s) L(W₀ + sΔ)], s ~ U([s_min, 1 − δ] ∪ [1 + δ, s_max]).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Parameters = Mapping[str, Any]  # arrays by tensor name, plain or traced


@dataclass(frozen=True)
class Weighting:
    """w(s) = s^(−power); the gradient it leaves is s^(1 − power) ∇L(W₀ + sΔ)."""

    power: float
    source: str

    def __call__(self, s: float) -> float:
        return float(1 / s**self.power)


WEIGHTINGS: dict[str, Weighting] = {
    "1/s": Weighting(1.0, "arXiv 2601.21898: the method's w(s)"),
    "1/sqrt(s)": Weighting(0.5, "arXiv 2601.21898: the runs on mathematics"),
}


def sample_scale(
    rng: np.random.Generator,
    size: int,
    low: float = 0.05,
    high: float = 2.0,
    gap: float = 0.05,
) -> NDArray[np.float64]:
    """`size` scales from the uniform law on [low, 1 − gap] ∪ [1 + gap, high]; the published settings.

    The generator should be the sampler's own, so that data order and scales don't move each other.
    Raises ValueError unless 0 < low < 1 − gap, 1 + gap < high and gap ≥ 0.
    """
    if not (0 < low < 1 - gap <= 1 and 1 + gap < high):
        raise ValueError(f"scales [{low}, 1−{gap}] ∪ [1+{gap}, {high}]: both need a positive length, low > 0, gap ≥ 0")
    below = 1 - gap - low
    # One uniform draw over the total length, folded over the gap: each interval gets its share.
    at = rng.uniform(0.0, below + high - 1 - gap, size)
    return np.where(at < below, low + at, 1 + gap + (at - below))


def quadrature(
    nodes: int, low: float = 0.05, high: float = 2.0, gap: float = 0.05
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scales s and probabilities p with Σ p f(s) = E f(s) for every polynomial f of degree below 2 · nodes.

    Gauss-Legendre on each interval of the law of `sample_scale`, 2 · nodes scales in all. The error for other f is
    the caller's to bound.
    """
    at, weight = np.polynomial.legendre.leggauss(nodes)
    total = (1 - gap - low) + (high - 1 - gap)
    ends = ((low, 1 - gap), (1 + gap, high))
    scales = [(a + b) / 2 + (b - a) / 2 * at for a, b in ends]
    return np.concatenate(scales), np.concatenate([(b - a) / 2 / total * weight for a, b in ends])


def scaled(base: Parameters, update: Parameters, s: float) -> dict[str, Any]:
    """W₀ + sΔ tensor by tensor; a tensor without an update stays as it is.

    Raises ValueError for an update whose name or shape the base does not have.
    """
    for name, delta in update.items():
        if name not in base or np.shape(base[name]) != np.shape(delta):
            have = np.shape(base[name]) if name in base else "no such tensor"
            raise ValueError(f"update {name}: shape {np.shape(delta)}, base: {have}; they must agree")
    return {**base, **{name: base[name] + s * delta for name, delta in update.items()}}


def low_rank_update(a: Parameters, b: Parameters, s: float) -> dict[str, Any]:
    """LoRA's Δ at scale s, (sB) A: only B is scaled, since scaling both would give s² B A.

    a (r, in) and b (out, r) per tensor name. Raises ValueError where the names differ.
    """
    if a.keys() != b.keys():
        raise ValueError(f"LoRA: A and B differ in {', '.join(sorted(a.keys() ^ b.keys()))}; give both factors of each")
    return {name: np.matmul(s * b[name], a[name]) for name in a}


def objective(
    loss: Callable[[dict[str, Any]], Any],
    base: Parameters,
    update: Parameters,
    s: float,
    weighting: Weighting,
    strength: float,
) -> Any:
    """One draw of J: L(W₀ + Δ) − λ w(s) L(W₀ + sΔ), λ = strength (published: 0.001 LoRA, 0.005 full)."""
    nominal, off = loss(scaled(base, update, 1.0)), loss(scaled(base, update, s))
    return nominal - strength * weighting(s) * off
