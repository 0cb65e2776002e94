"""Projected merge: the protected direction stays at s = 1 in the sum, not only in its own term.

Others' updates have a part along Δ, which adds to its scale: W₀ + Δ + s Σ Δ_i has Δ at 1 + s ρ. Here it is taken away.
"""

from collections.abc import Sequence

from lockref.attacks.merging_grid import SCALES, Members, Score, best
from lockref.attacks.result import AttackResult


def projected_merge(members: Members, score: Score, scales: Sequence[float] = SCALES) -> AttackResult:
    """W₀ + (1 − sρ) Δ + s Σ Δ_i, ρ = `members.overlap`, for the s of least score; `found` holds scale and overlap."""
    rho = members.overlap
    return best("projected", score, (({"scale": s, "overlap": rho}, members.merged(1 - s * rho, s)) for s in scales))
