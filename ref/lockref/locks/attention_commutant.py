"""Which turns a rotary, QK-normed attention head survives (Qwen3; locks of arXiv 2511.10712).

With gains Γ and rotations R, the score of two tokens Δ positions apart is n_q Γ_q R_Δ Γ_k n_kᵀ. Turning queries and
keys by P leaves every score alone if and only if

    P M_Δ Pᵀ = M_Δ   for every offset Δ,   M_Δ = Γ_q R_Δ Γ_k.

With distinct frequencies and gains that are not zero, the orthogonal solutions act plane by plane: ±I on plane
(i, i + c/2), and any rotation of a plane whose two gains are equal, or opposite, in γ_q and γ_k alike (proof: MB-FUNC).
"""

import numpy as np
from numpy.typing import NDArray

from lockref.autodiff import ops
from lockref.locks.attention import require_orthogonal

Array = NDArray[np.float64]


def score_matrices(q_gain: Array, k_gain: Array, theta: float) -> Array:
    """M_Δ = Γ_q R_Δ Γ_k for Δ = 0 … c−1, (c, c, c): these c offsets decide about all others.

    cos and sin of c/2 distinct frequencies are linearly independent on any c consecutive integers.
    """
    c = q_gain.shape[-1]
    cos, sin = ops.rope_tables(np.arange(c), c, theta)
    turn = np.stack([ops.rope(np.eye(c), cos=x, sin=y) for x, y in zip(cos, sin, strict=True)])
    matrices: Array = q_gain[:, None] * turn * k_gain
    return matrices


def commutant_defect(p: Array, q_gain: Array, k_gain: Array, theta: float) -> float:
    """max over offsets of ‖P M_Δ Pᵀ − M_Δ‖_F / ‖M_Δ‖_F for one P (c, c), by definition: 0 on the commutant.

    Raises ValueError for a P that is not orthogonal or gains of another length.
    """
    _require(p, q_gain, k_gain)
    m = score_matrices(q_gain, k_gain, theta)
    moved = np.linalg.norm(p @ m @ p.T - m, axis=(-2, -1))
    return float(np.max(moved / np.linalg.norm(m, axis=(-2, -1))))


def nearest_in_commutant(p: Array, q_gain: Array, k_gain: Array) -> Array:
    """The orthogonal matrix of the commutant that is nearest to P (c, c) in Frobenius norm.

    Plane by plane, with B the 2×2 block of P: the sign of tr B (+1 for 0), or where the gains leave the plane free the
    rotation nearest to B. Raises ValueError for a zero gain: it would free directions that this form does not know.
    """
    _require(p, q_gain, k_gain)
    if not np.all(q_gain * k_gain):
        raise ValueError("a gain of q_norm or k_norm is zero; the commutant is known for gains that are not zero")
    c = len(q_gain)
    i = np.arange(c // 2)
    j = i + c // 2
    along, across = p[i, i] + p[j, j], p[j, i] - p[i, j]
    ratio = q_gain[i] / q_gain[j]
    free = (np.abs(ratio) == 1) & (k_gain[i] == ratio * k_gain[j])
    across = np.where(free, across, 0.0)
    length = np.hypot(along, across)
    cos = np.divide(along, length, out=np.ones_like(length), where=length > 0)
    sin = np.divide(across, length, out=np.zeros_like(length), where=length > 0)
    out = np.zeros((c, c))
    out[i, i], out[j, j], out[j, i], out[i, j] = cos, cos, sin, -sin
    return out


def _require(p: Array, q_gain: Array, k_gain: Array) -> None:
    require_orthogonal(p)
    c = p.shape[-1]
    if p.ndim != 2 or q_gain.shape != (c,) or k_gain.shape != (c,) or c % 2:
        raise ValueError(
            f"P {p.shape} with gains {q_gain.shape} and {k_gain.shape}; expected (c, c) and twice (c,), c even"
        )
