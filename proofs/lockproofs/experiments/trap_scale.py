"""Loss and exact match of W₀ + sΔ for s from 0 to 2, protected and not, full updates and LoRA."""

from typing import Any

from lockproofs.experiments.store import Cell, Experiment
from lockproofs.trap_models import AS_PUBLISHED, PROBLEMS, SKILL, WEAK, at_scale, expert, figures, pairs, stronger

GRID = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0)


def measure(cell: Cell) -> dict[str, Any]:
    """Lists over GRID."""
    plan = expert(cell["kind"], cell["strength"], cell["seed"])
    found = [figures(at_scale(plan, s), (SKILL,)) for s in GRID]
    return {"scales": list(GRID), "loss": [f[f"{SKILL}_loss"] for f in found], "match": [f[SKILL] for f in found]}


EXPERIMENT = Experiment(
    name="trap_scale",
    title="Trap² on the zoo: the skill along W₀ + sΔ",
    seed=0,
    settings={"problems": PROBLEMS},
    cells=[*pairs(), *AS_PUBLISHED, WEAK, *stronger()],
    measure=measure,
)
