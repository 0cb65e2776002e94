"""Per-layer scale search: a scale for each member in each layer, by coordinate descent on the attacker's score."""

import re
from collections.abc import Sequence

import numpy as np

from lockref.attacks.merging_grid import KNOWS, Members, Score
from lockref.attacks.result import AttackResult, Tensors

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
Scales = dict[str, list[float]]  # by group: the protected member's, the others'


def group_of(name: str) -> str:
    """The layer that a tensor belongs to; all tensors outside the layers are one group."""
    found = re.search(r"\.layers\.(\d+)\.", name)
    return f"layer {found[1]}" if found else "outside"


def layer_scales(
    members: Members,
    score: Score,
    start: tuple[float, float],
    *,
    grid: Sequence[float] = GRID,
    rounds: int = 1,
    moves: Sequence[int] = (0, 1),
) -> AttackResult:
    """From (protected, others) scales that all layers share, changes one at a time while the score falls.

    `moves`: whose scales change; (1,) keeps the protected update where it starts. `found` holds scales by group,
    score and tried. Raises ValueError where the start's score is not finite.
    """
    groups = {name: group_of(name) for name in members.base}
    scales: Scales = {group: list(start) for group in dict.fromkeys(groups.values())}

    def merged(scales: Scales) -> Tensors:
        p, o = ({name: scales[group][who] for name, group in groups.items()} for who in (0, 1))
        return members.merged(p, o)

    tensors = merged(scales)
    least, tried = score(tensors), 1
    if not np.isfinite(least):
        raise ValueError(f"layer-scales: the score at the start {start} is {least}; start elsewhere")
    for _ in range(rounds):
        for group in scales:
            for who in moves:
                for s in grid:
                    if s == scales[group][who]:
                        continue
                    trial = {g: [*v] for g, v in scales.items()}
                    trial[group][who] = s
                    candidate = merged(trial)
                    value, tried = score(candidate), tried + 1
                    if value < least:
                        least, scales, tensors = value, trial, candidate
    return AttackResult("layer-scales", KNOWS, (tensors,), {"scales": scales, "score": float(least), "tried": tried})
