"""Trap² on a network without attention: experts along W₀ + sΔ, merged by every operator, and after a recovery."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lockproofs import trap_digits as models
from lockproofs.digits import PARTS, images
from lockproofs.experiments.store import Cell, Experiment
from lockproofs.experiments.trap_merge import NOMINAL, operators, tuned
from lockproofs.trap_digits import PARTNER, SEEDS, SKILL, STRENGTHS, Plan, Tensors, at_scale, figures, score, trained
from lockref.attacks.merging_grid import Members, best
from lockref.attacks.nominal_merge import nominal_merge
from lockref.attacks.result import AttackResult
from lockref.attacks.shared_scale import shared_scale
from lockref.locks.trap2_training import LoRA
from lockref.merging import SETTINGS, Adapter, merge

GRID = tuple(round(0.05 * k, 2) for k in range(41))
SHARED = "shared scale"  # task arithmetic, more finely tuned than the other operators
SHARED_SCALES = tuple(round(0.05 * k, 2) for k in range(2, 31))
NOMINAL_SCALES = SHARED_SCALES[:19]


def attacks(plan: Plan, partner: Plan) -> Iterator[tuple[str, AttackResult]]:
    """Each way to merge an expert with its partner, at the scale that an attacker would choose."""
    shape = models.parametrization(plan.kind, plan.seed)
    whole = [at_scale(p, 1.0) for p in (plan, partner)]
    members = Members.of_models(shape.base, whole[0], whole[1:])
    yield SHARED, shared_scale(members, score, SHARED_SCALES)
    yield NOMINAL, nominal_merge(members, score, NOMINAL_SCALES)
    given: list[Any] = list(whole)
    if isinstance(shape, LoRA):
        factors = [shape.factors(trained(p)) for p in (plan, partner)]
        given = [Adapter(b, a, shape.alpha / shape.rank) for a, b in factors]
    for name in operators(plan.kind):
        made = (
            ({"scale": s}, merge(shape.base, given, setting, rng=np.random.default_rng(plan.seed)).tensors)
            for s, setting in tuned(SETTINGS[name])
        )
        yield name, best(name, score, made)


def measure(cell: Cell) -> dict[str, Any]:
    """Figures of base, expert and partner alone, the expert's own half over GRID, every merge, and three recoveries."""
    plan = Plan(**cell)
    partner, base = Plan(plan.kind, 0.0, plan.seed, PARTNER), models.base(plan.seed)
    try:
        trained(plan)
    except FloatingPointError as error:
        return {"stopped": str(error)}
    alone = {"base": base, "expert": at_scale(plan, 1.0), "partner": at_scale(partner, 1.0)}
    curve = [figures(at_scale(plan, s)) for s in GRID]
    merges, tensors = dict[str, Any](), dict[str, Tensors]()
    for name, found in attacks(plan, partner):
        tensors[name] = dict(found.guesses[0])
        merges[name] = {**{n: found.found[n] for n in ("scale", "score")}, **figures(tensors[name])}
    fine_tuned = {**alone, SHARED: tensors[SHARED]}
    return {
        "images": {name: len(images("held out").of(digits).labels) for name, digits in models.DIGITS.items()},
        "alone": {name: {"score": score(model), **figures(model)} for name, model in alone.items()},
        "scales": list(GRID),
        "loss": [f[f"{SKILL}_loss"] for f in curve],
        "match": [f[SKILL] for f in curve],
        "merges": merges,
        "recovered": {name: figures(models.recovered(model, plan.seed)) for name, model in fine_tuned.items()},
    }


EXPERIMENT = Experiment(
    name="trap_digits",
    title="Trap² without attention: half of the digits each, protected with several λ, merged and recovered",
    seed=0,
    settings={
        "parts": PARTS, "batch": models.BATCH, "replayed": models.REPLAYED, "base": models.BASE,
        "steps": models.STEPS, "rates": models.RATES, "rank": models.RANK, "recovery": models.RECOVERY,
    },
    cells=[
        {"kind": kind, "strength": strength, "seed": seed, "order": order}
        for seed in SEEDS
        for kind, strengths in STRENGTHS.items()
        for strength, order in ((0.0, 0), (0.0, 1), *((strength, 0) for strength in strengths))
    ],
    measure=measure,
)  # fmt: skip
