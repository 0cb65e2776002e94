"""Loss along the straight path from an expert on addition to its partner on reversal, protected by Trap² or not.

Straight: W₀ + (1 − α) Δ + α Δ_partner. Two attackers: nominal, who knows at which scale the protected update works,
has W₀ + Δ + α Δ_partner; recovered fine-tunes the expert a little, without the lock, and then goes straight. Held-out
answer loss, the mean over both skills.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from lockproofs.experiments.store import Cell, Experiment
from lockproofs.trap_models import (
    PARTNER,
    SKILL,
    at_scale,
    base,
    batch_loss,
    draw,
    expert,
    held_out,
    pairs,
    partner,
)
from lockref.attacks.merging_grid import Members
from lockref.attacks.recovery import recover
from lockref.locks.dlr_training import Recipe
from lockref.models.answers import answer_loss

ALPHAS = tuple(n / 10 for n in range(11))
PROBLEMS = 100  # of each skill
PATHS = ("straight", "nominal", "recovered")
RECOVERY = Recipe(30, 3e-4, 1)  # set before such a row was measured; a twentieth of the expert's steps


def loss(params: Mapping[str, Any]) -> float:
    """Nats per token of an answer."""
    problems = (held_out(name, PROBLEMS)[1] for name in (SKILL, PARTNER))
    return float(np.mean([answer_loss(params, given, base().config) for given in problems]))


def measure(cell: Cell) -> dict[str, Any]:
    """Losses at every α."""
    own: Mapping[str, Any] = at_scale(expert(cell["kind"], cell["strength"], cell["seed"]), 1.0)
    if cell["path"] == "recovered":
        own = recover(own, batch_loss, lambda rng: draw(SKILL, rng), RECOVERY).guesses[0]
    members = Members.of_models(base().tensors, own, [at_scale(partner(cell["kind"]), 1.0)])
    stays = cell["path"] == "nominal"
    return {
        "alphas": list(ALPHAS),
        "losses": [loss(members.merged(1.0 if stays else 1 - alpha, alpha)) for alpha in ALPHAS],
    }


EXPERIMENT = Experiment(
    name="trap_paths",
    title="Trap² on the zoo: loss on the straight path from an expert to its partner",
    seed=0,
    settings={"problems": PROBLEMS, "skills": (SKILL, PARTNER), "paths": PATHS, "recovery": asdict(RECOVERY)},
    cells=[{**pair, "path": path} for path in PATHS for pair in pairs() if path == "straight" or pair["strength"]],
    measure=measure,
)
