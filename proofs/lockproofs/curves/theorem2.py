"""Eq. (2) and its surrogate along MergeBarrier's flips, and over all orthogonal 2 × 2 matrices."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.claim import Curve, Plot
from lockref.locks.attention import eigenbasis, eq2_from_grams, flip, surrogate

Array = NDArray[np.float64]

STEPS = 96  # of a full turn, a multiple of 4: π/2 and π are among the angles


def along_flips(a: Array, b: Array, best: float, bound: float) -> Plot:
    """f(P_k) and g(P_k) for every k, relative to the bound of f and the maximum of g; `best` is the best f found."""
    c = len(a)
    ks = list(range(c + 1))
    p = flip(eigenbasis(a + b), ks)
    f, g = eq2_from_grams(a, b, p), surrogate(a, b, p)
    return Plot(
        title="Eq. (2) and its surrogate on one key head",
        x_label="k, flipped eigen-directions",
        y_label="share of the upper bound; g: of its maximum",
        curves=[
            Curve(name="best f found", x=[0, c], y=[best / bound if bound else 0.0] * 2),
            Curve(name="f(P_k), eq. (2)", x=ks, y=(f / bound).tolist()),
            Curve(name="g(P_k), surrogate", x=ks, y=(g / g[-1]).tolist()),
        ],
    )


def over_the_circle(given: dict[str, Any]) -> Plot:
    """f and g of the counterexample's pair for every rotation and every reflection of the plane."""
    w_q, w_k = (np.array(given[name], float) for name in ("W_q", "W_k"))
    a, b = w_q.T @ w_q, w_k.T @ w_k
    turns = np.arange(STEPS + 1) * 2 * np.pi / STEPS
    cos, sin = np.cos(turns), np.sin(turns)
    families = {
        "rotation by φ": np.array([[cos, -sin], [sin, cos]]).transpose(2, 0, 1),
        "reflection, axis at φ/2": np.array([[cos, sin], [sin, -cos]]).transpose(2, 0, 1),
    }
    curves = [
        Curve(name=f"{name}: {score}", x=turns.tolist(), y=f(a, b, p).tolist())
        for name, p in families.items()
        for score, f in (("f", eq2_from_grams), ("g", surrogate))
    ]
    return Plot(
        title=f"The counterexample W_q = {given['W_q'][0]}, W_k = {given['W_k'][0]} over all orthogonal P",
        x_label="φ, radians", y_label="f; g", curves=curves,
    )  # fmt: skip
