"""Training rows of Trap²: {full, LoRA} × λ × seeds on addition, and the partners that they are merged with."""

from typing import Any

import numpy as np

from lockproofs.experiments.store import Cell, Experiment
from lockproofs.trap_models import (
    AS_PUBLISHED,
    LINES,
    PROBLEMS,
    RATES,
    REPLAYED,
    STEPS,
    WEAK,
    Plan,
    at_scale,
    base,
    expert,
    figures,
    first_losses,
    pairs,
    partner,
    stronger,
    trained,
)

FIRST = 3  # steps whose losses a test computes again


def plans() -> list[Plan]:
    """The partners, then experts seed by seed; then λ as published and below, one seed, and above."""
    return [partner(kind) for kind in RATES] + [expert(**cell) for cell in (*pairs(), *AS_PUBLISHED, WEAK, *stronger())]


def measure(cell: Cell) -> dict[str, Any]:
    plan = Plan(**cell)
    beginning = first_losses(plan, FIRST)
    trained(plan)
    whole = at_scale(plan, 1.0)
    moved = sum(float(np.sum(np.square(whole[n] - w, dtype=np.float64))) for n, w in base().tensors.items())
    return {"first_losses": beginning, "update_norm": moved**0.5, **figures(whole)}


EXPERIMENT = Experiment(
    name="trap_train",
    title="Trap² on the zoo: experts protected with several λ, and partners",
    seed=0,
    settings={"lines": LINES, "replayed": REPLAYED, "rates": RATES, "steps": STEPS, "problems": PROBLEMS, "rank": 8},
    cells=[vars(plan) for plan in plans()],
    measure=measure,
)
