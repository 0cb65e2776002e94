"""What λ, the number of steps and the law of s do to Trap²: skill alone, curve along W₀ + sΔ, and merged."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lockproofs.experiments.store import Cell, Experiment
from lockproofs.trap_models import (
    AS_PUBLISHED,
    CHOSEN_ON,
    PARTNER,
    RATES,
    SKILL,
    STEPS,
    STRENGTHS,
    WEAK,
    at_scale,
    base,
    expert,
    figures,
    held_out,
    parametrization,
    partner,
    recipe,
    score,
    trained_as,
)
from lockref.attacks.merging_grid import SCALES, Members
from lockref.attacks.shared_scale import shared_scale
from lockref.locks.trap2 import quadrature
from lockref.locks.trap2_training import Protection
from lockref.models.answers import answer_loss

GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
PROBLEMS, NODES = 100, 4  # held out, of each skill; scales for E_s on either side of 1
LAWS: dict[str, Callable[[float], Protection]] = {
    "published": Protection,
    "below": partial(Protection, high=1.05 + 1e-9),  # no weight above 1
}
OTHER = [{"kind": kind, "strength": 0.05} for kind in RATES]
SHORT = {"full": STEPS // 2}  # of the kind whose collapse below 1 is deep
SHALLOW = "lora"  # whose collapse below 1 is not


def cells() -> list[Cell]:
    """By kind: λ from 0 up, at the usual steps and law; then half the steps, and scales below 1 alone."""
    known = [{"kind": kind, "strength": s} for kind in RATES for s in (0.0, STRENGTHS[kind])]
    rows = [{name: cell[name] for name in ("kind", "strength")} for cell in (*known, *AS_PUBLISHED, WEAK, *OTHER)]
    rows.sort(key=lambda row: (list(RATES).index(row["kind"]), row["strength"]))
    usual = {"steps": STEPS, "law": "published"}
    return [
        *({**row, **usual} for row in rows),
        *({"kind": k, "strength": s, **usual, "steps": n} for k, n in SHORT.items() for s in (0.0, STRENGTHS[k])),
        {"kind": SHALLOW, "strength": STRENGTHS[SHALLOW], **usual, "law": "below"},
    ]


def loss(params: Mapping[str, Any]) -> float:
    """Answer loss of the skill, held out."""
    return float(answer_loss(params, held_out(SKILL, PROBLEMS)[1], base().config))


def measure(cell: Cell) -> dict[str, Any]:
    """Curves over GRID; λ E[w L(W₀ + sΔ)] on either side of 1; the merge at the attacker's best shared scale."""
    plan = expert(cell["kind"], cell["strength"], 0)
    protection = LAWS[cell["law"]](cell["strength"])
    params = trained_as(plan, protection, recipe(plan, cell["steps"]))
    shape = parametrization(cell["kind"])
    curve = [figures(shape.applied(params, s), (SKILL,), PROBLEMS) for s in GRID]
    earned = {"below": 0.0, "above": 0.0}
    for s, share in zip(*quadrature(NODES), strict=True):
        term = protection.strength * protection.weighting(s) * loss(shape.applied(params, s))
        earned["below" if s < 1 else "above"] += float(share * term)
    members = Members.of_models(base().tensors, shape.applied(params, 1.0), [at_scale(partner(cell["kind"]), 1.0)])
    found = shared_scale(members, score)
    return {
        "scales": list(GRID),
        "loss": [f[f"{SKILL}_loss"] for f in curve],
        "match": [f[SKILL] for f in curve],
        "earned": earned,
        "merged": {"scale": found.found["scale"], **figures(found.guesses[0], count=PROBLEMS)},
    }


EXPERIMENT = Experiment(
    name="trap_strength",
    title="Trap² on the zoo: other λ, fewer steps, scales below 1 alone",
    seed=0,
    settings={
        "problems": PROBLEMS,
        "nodes": NODES,
        "chosen_on": CHOSEN_ON,
        "scales": SCALES,
        "skills": (SKILL, PARTNER),
    },
    cells=cells(),
    measure=measure,
)
