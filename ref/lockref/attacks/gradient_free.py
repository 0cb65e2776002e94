"""Gradient estimates that store nothing for later: forward gradients, and differences of two losses.

Both draw v ~ N(0, I_n) and return (∇f · v) v, the first by forward mode (Baydin et al., arXiv 2202.08587), the second
by a central difference (as in MeZO, Malladi et al., arXiv 2305.17333). With k independent draws

    E[ĝ] = ∇f,   Σ_i Var ĝ_i = (n + 1) ‖∇f‖² / k

so the squared relative error is (n + 1)/k: as many forward passes as weights buy what one reverse pass gives exactly.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lockref.autodiff import jvp
from lockref.autodiff.tree import flatten

Loss = Callable[[Any], Any]


def forward_gradient(f: Loss, params: Any, rng: np.random.Generator, draws: int = 1) -> Any:
    """Unbiased estimate of ∇f at nested arrays: the mean of (∇f · v) v over `draws` forward-mode passes."""

    def slope(v: Any) -> Any:
        return jvp(f, (params,), (v,))[1]

    return _average(slope, params, rng, draws)


def zeroth_order(f: Loss, params: Any, rng: np.random.Generator, draws: int = 1, *, step: float = 1e-4) -> Any:
    """The mean of v (f(θ + εv) − f(θ − εv)) / 2ε over `draws`: two losses each, bias O(ε²), exact for quadratics."""
    if not step > 0:
        raise ValueError(f"zeroth_order: step is {step}; it must be positive")

    def slope(v: Any) -> Any:
        leaves, _, rebuild = flatten(params)
        ahead, back = (
            f(rebuild([x + s * step * d for x, d in zip(leaves, flatten(v)[0], strict=True)])) for s in (1, -1)
        )
        return (ahead - back) / (2 * step)

    return _average(slope, params, rng, draws)


def relative_variance(n: int, draws: int) -> float:
    """E‖ĝ − ∇f‖² / ‖∇f‖² of both estimators for n weights: (n + 1) / draws."""
    if n < 1 or draws < 1:
        raise ValueError(f"relative_variance: n={n}, draws={draws}; both must be at least 1")
    return (n + 1) / draws


def _average(slope: Callable[[Any], Any], params: Any, rng: np.random.Generator, draws: int) -> Any:
    if draws < 1:
        raise ValueError(f"gradient estimate from {draws} draws; take at least 1")
    leaves, _, rebuild = flatten(params)
    total: list[Any] = [np.zeros(np.shape(x), np.asarray(x).dtype) for x in leaves]
    for _ in range(draws):
        v = [np.asarray(rng.standard_normal(x.shape), x.dtype) for x in total]
        along = slope(rebuild(v))
        for t, d in zip(total, v, strict=True):
            t += along * d
    return rebuild([t / np.asarray(draws, t.dtype) for t in total])
