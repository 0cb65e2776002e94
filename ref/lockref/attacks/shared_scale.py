"""Shared-scale search: task arithmetic (arXiv 2212.04089) with one scale for all members, the published attacker."""

from collections.abc import Sequence

from lockref.attacks.merging_grid import SCALES, Members, Score, best
from lockref.attacks.result import AttackResult


def shared_scale(members: Members, score: Score, scales: Sequence[float] = SCALES) -> AttackResult:
    """W₀ + s (Δ + Σ Δ_i) for the s of least score; `found` holds scale."""
    return best("shared-scale", score, (({"scale": s}, members.merged(s, s)) for s in scales))
