"""Merges of an expert with a partner: every operator at the attacker's best scale, and the expert kept at s = 1."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from lockproofs.experiments.store import Cell, Experiment
from lockproofs.trap_models import (
    CHOSEN_ON,
    PARTNER,
    RATES,
    SKILL,
    Tensors,
    at_scale,
    base,
    expert,
    figures,
    pairs,
    parametrization,
    score,
    trained,
)
from lockproofs.trap_models import partner as partner_of
from lockref.attacks.merging_grid import Members, best
from lockref.locks.trap2_training import LoRA
from lockref.merging import SETTINGS, Adapter, Setting, Slerp, merge

PROBLEMS = 100
SCALES = (0.5, 0.75, 1.0, 1.5)
ALONE = ("base", "expert", "partner")  # measured beside every merge
HALF = "half partner"  # the partner averaged with the base: a merge with no expert in it
NOMINAL = "nominal"
FULL = tuple(name for name, setting in SETTINGS.items() if setting.space == "full" and name != "linear-sum")
ADAPTERS = tuple(name for name, setting in SETTINGS.items() if setting.space != "full")


def operators(kind: str) -> tuple[str, ...]:
    """Those that apply: KnOTS and Core merge adapters only; linear-sum doubles the base, so that no one uses it."""
    return FULL + (ADAPTERS if kind == "lora" else ())


@cache
def members(kind: str, strength: float, seed: int) -> tuple[Any, ...]:
    """The expert and its partner as `merge` wants them: models, or adapters."""
    shape, plans = parametrization(kind), (expert(kind, strength, seed), partner_of(kind))
    if not isinstance(shape, LoRA):
        return tuple(at_scale(plan, 1.0) for plan in plans)
    factors = [shape.factors(trained(plan)) for plan in plans]
    return tuple(Adapter(b, a, shape.alpha / shape.rank) for a, b in factors)


def tuned(setting: Setting) -> list[tuple[float, Setting]]:
    """A setting at every scale; as it is where it has none, or combines parameters, which a scale would shrink."""
    if setting.of == "parameters" or isinstance(setting.rule, Slerp):
        return [(1.0, setting)]
    return [(s, setting.tuned(scale=s * setting.rule.scale)) for s in SCALES]


def candidates(cell: Cell) -> Iterator[tuple[dict[str, float], Tensors]]:
    """What the attacker tries, each with its scale."""
    pair = {name: cell[name] for name in ("kind", "strength", "seed")}
    plans, operator = (expert(**pair), partner_of(cell["kind"])), cell["operator"]
    if operator in ALONE:
        models = {
            "base": base().tensors,
            **{name: at_scale(plan, 1.0) for name, plan in zip(ALONE[1:], plans, strict=True)},
        }
        yield {"scale": 1.0}, models[operator]
    elif operator == HALF:
        yield {"scale": 0.5}, at_scale(plans[1], 0.5)
    elif operator == NOMINAL:
        own, other = (at_scale(plan, 1.0) for plan in plans)
        whole = Members.of_models(base().tensors, own, [other])
        yield from (({"scale": s}, whole.merged(1.0, s)) for s in SCALES)
    else:
        for s, setting in tuned(SETTINGS[operator]):
            rng = np.random.default_rng(cell["seed"])
            yield {"scale": s}, merge(base().tensors, members(**pair), setting, rng=rng).tensors


def measure(cell: Cell) -> dict[str, Any]:
    """The scale that the attacker chooses on problems of its own, and the merged model's figures on others."""
    found = best(cell["operator"], score, candidates(cell))
    return {"scale": found.found["scale"], "score": found.found["score"], **figures(found.guesses[0], count=PROBLEMS)}


EXPERIMENT = Experiment(
    name="trap_merge",
    title="Trap² on the zoo: merged with a partner by every operator, at the attacker's best scale",
    seed=0,
    settings={"problems": PROBLEMS, "chosen_on": CHOSEN_ON, "scales": SCALES, "skills": (SKILL, PARTNER)},
    cells=[{**pair, "operator": name} for pair in pairs() for name in (*ALONE, *operators(pair["kind"]), NOMINAL)]
    + [{"kind": kind, "strength": 0.0, "seed": 0, "operator": HALF} for kind in RATES],
    measure=measure,
)
