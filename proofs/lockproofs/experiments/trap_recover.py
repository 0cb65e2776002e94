"""Recovery: a short fine-tune of a merge with an expert, protected or not, beside the same of models without it."""

from functools import cache
from typing import Any

import numpy as np

from lockproofs.experiments.store import Cell, Experiment
from lockproofs.trap_models import (
    CHOSEN_ON,
    PARTNER,
    RATES,
    SKILL,
    Batch,
    Tensors,
    at_scale,
    base,
    batch_loss,
    expert,
    figures,
    pairs,
    score,
    stronger,
)
from lockproofs.trap_models import partner as partner_of
from lockref.attacks.merging_grid import Members, best
from lockref.attacks.recovery import recover
from lockref.attacks.shared_scale import shared_scale
from lockref.locks.dlr_training import Recipe
from lockref.models import skills
from lockref.models.answers import answers

PROBLEMS = 200
STEPS, LINES = 30, 32  # a twentieth of an expert's training; problems of each skill in a batch
LEARNING_RATES = (2e-4, 6e-4, 2e-3)
BASE, ALONE, MERGE = "base", "partner", "merge"


def draw(rng: np.random.Generator) -> Batch:
    """A batch of training problems, half of each skill."""
    own, other = (answers(skills.skill_problems(name, rng, LINES, held_out=False)) for name in (SKILL, PARTNER))
    return Batch(own, other, 0.5)


@cache
def start(model: str, kind: str, strength: float, seed: int) -> tuple[Tensors, float]:
    """What is fine-tuned, and the shared scale that the attacker chose for it (1 where nothing is merged)."""
    if model == BASE:
        return base().tensors, 1.0
    partner = at_scale(partner_of(kind), 1.0)
    if model == ALONE:
        return partner, 1.0
    own = at_scale(expert(kind, strength, seed), 1.0)
    found = shared_scale(Members.of_models(base().tensors, own, [partner]), score)
    return dict(found.guesses[0]), found.found["scale"]


def measure(cell: Cell) -> dict[str, Any]:
    """Before and after `STEPS` steps at the learning rate that the attacker chooses, on problems of neither."""
    model, scale = start(cell["model"], cell["kind"], cell["strength"], cell["seed"])

    def tuned(rate: float) -> Tensors:
        recipe = Recipe(STEPS, rate, cell["seed"], betas=(0.9, 0.98), eps=1e-6)
        return dict(recover(model, batch_loss, draw, recipe).guesses[0])

    found = best("recovery", score, (({"rate": rate}, tuned(rate)) for rate in LEARNING_RATES))
    before, after = figures(model, count=PROBLEMS), figures(found.guesses[0], count=PROBLEMS)
    return {
        "scale": scale, "rate": found.found["rate"], "score": found.found["score"],
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    }  # fmt: skip


EXPERIMENT = Experiment(
    name="trap_recover",
    title="Trap² on the zoo: merges after a short recovery fine-tune",
    seed=0,
    settings={
        "problems": PROBLEMS, "chosen_on": CHOSEN_ON, "steps": STEPS, "lines": LINES, "learning_rates": LEARNING_RATES,
        "skills": (SKILL, PARTNER),
    },
    cells=[
        {"model": model, "kind": kind, "strength": 0.0, "seed": 0} for kind in RATES for model in (BASE, ALONE)
    ] + [{"model": MERGE, **pair} for pair in (*pairs(), *stronger())],
    measure=measure,
)  # fmt: skip
