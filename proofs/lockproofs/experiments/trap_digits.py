"""Trap² on a network without attention: experts along W₀ + sΔ, merged by every operator, and after a recovery."""

from collections.abc import Iterator
from typing import Any

from lockproofs import trap_digits as models
from lockproofs.digits import PARTS, images
from lockproofs.experiments.store import Cell, Experiment
from lockproofs.experiments.trap_merge import NOMINAL, operators
from lockproofs.trap_digits import SEEDS, SKILL, STRENGTHS, Plan, Tensors, at_scale, figures, score, trained
from lockref.attacks.merging_grid import Members
from lockref.attacks.nominal_merge import nominal_merge
from lockref.attacks.operator_merge import operator_merge
from lockref.attacks.projected_merge import projected_merge
from lockref.attacks.result import AttackResult
from lockref.attacks.shared_scale import shared_scale
from lockref.locks.trap2_training import LoRA
from lockref.merging import SETTINGS, Adapter

GRID = tuple(k / 8 for k in range(17))
SHARED = "shared scale"  # task arithmetic, more finely tuned than other operators
PROJECTED = "projected"
SHARED_SCALES = tuple(round(0.05 * k, 2) for k in range(2, 31))  # 0.1 … 1.5
NOMINAL_SCALES = tuple(round(0.05 * k, 2) for k in range(1, 21))  # the partner's, 0.05 … 1


def attacks(plan: Plan, whole: Members) -> Iterator[tuple[str, AttackResult]]:
    """Each way to merge an expert with its partner, at the scale that an attacker would choose."""
    yield SHARED, shared_scale(whole, score, SHARED_SCALES)
    yield NOMINAL, nominal_merge(whole, score, NOMINAL_SCALES)
    yield PROJECTED, projected_merge(whole, score, NOMINAL_SCALES)
    shape, both = models.parametrization(plan.kind, plan.seed), (plan, models.partner(plan))
    given: list[Any] = [at_scale(p, 1.0) for p in both]
    if isinstance(shape, LoRA):
        factors = [shape.factors(trained(p)) for p in both]
        given = [Adapter(b, a, shape.alpha / shape.rank) for a, b in factors]
    for name in operators(plan.kind):
        yield name, operator_merge(shape.base, given, SETTINGS[name], score, SHARED_SCALES[::2], plan.seed)


def measure(cell: Cell) -> dict[str, Any]:
    """Figures of base, expert and partner alone, the expert's own half over GRID, every merge, and four recoveries.

    Where training diverges, what it said.
    """
    plan = Plan(**cell)
    try:
        trained(plan)
    except FloatingPointError as error:
        return {"stopped": str(error)}
    expert, partner = (at_scale(p, 1.0) for p in (plan, models.partner(plan)))
    alone = {"base": models.base(plan.seed), "expert": expert, "partner": partner}
    whole = Members.of_models(alone["base"], expert, [partner])
    curve = [figures(at_scale(plan, s)) for s in GRID]
    merges, tensors = dict[str, Any](), dict[str, Tensors]()
    for name, found in attacks(plan, whole):
        tensors[name] = dict(found.guesses[0])
        merges[name] = {"scale": found.found["scale"], "score": found.found["score"], **figures(tensors[name])}
    fine_tuned = {**alone, SHARED: tensors[SHARED]}
    return {
        "images": {name: len(images("held out").of(digits).labels) for name, digits in models.DIGITS.items()},
        "overlap": whole.overlap,
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
