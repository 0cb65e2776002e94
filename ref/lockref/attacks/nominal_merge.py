"""Protected-at-nominal merge: the protected update stays at s = 1, where it was trained to work; others are scaled."""

from collections.abc import Sequence

from lockref.attacks.merging_grid import SCALES, Members, Score, best
from lockref.attacks.result import AttackResult


def nominal_merge(members: Members, score: Score, scales: Sequence[float] = SCALES) -> AttackResult:
    """W₀ + Δ + s Σ Δ_i for the s of least score; `found` holds scale."""
    return best("nominal", score, (({"scale": s}, members.merged(1.0, s)) for s in scales))
