"""Merges of an expert with a partner: every operator at the attacker's best scale, and the expert kept at s = 1."""

from functools import cache
from typing import Any

from lockproofs.experiments.store import Cell, Experiment
from lockproofs.trap_models import (
    CHOSEN_ON,
    PARTNER,
    RATES,
    SKILL,
    at_scale,
    base,
    expert,
    figures,
    pairs,
    parametrization,
    score,
    stronger,
    trained,
)
from lockproofs.trap_models import partner as partner_of
from lockref.attacks.layer_scales import layer_scales
from lockref.attacks.merging_grid import Members
from lockref.attacks.nominal_merge import nominal_merge
from lockref.attacks.operator_merge import operator_merge
from lockref.attacks.projected_merge import projected_merge
from lockref.attacks.result import AttackResult
from lockref.attacks.shared_scale import shared_scale
from lockref.attacks.tensor_subset import tensor_subset
from lockref.locks.trap2_training import LoRA
from lockref.merging import SETTINGS, Adapter
from lockref.merging.settings import Space

PROBLEMS = 200
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5)  # shared by both members
BESIDE = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)  # the partner's, beside an expert at s = 1
OF_A_LAYER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ALONE = ("base", "expert", "partner")  # measured beside every merge
HALF = "half partner"  # the partner averaged with the base: a merge with no expert in it
NOMINAL, NOMINAL_LAYERS = "nominal", "nominal-layers"  # the expert at s = 1: one scale for the partner, or one a layer
PROJECTED = "projected"  # the same, less the part of the partner's update along the expert's
LAYERS, SUBSET = "layer-scales", "tensor-subset"  # scales that are not shared
FULL = tuple(name for name, setting in SETTINGS.items() if setting.space == "full" and name != "linear-sum")
ADAPTERS = tuple(name for name, setting in SETTINGS.items() if setting.space != "full")
SPACES: tuple[Space, ...] = ("full", "knots", "core")
IN_SPACES = ("task-arithmetic", "ties", "tsv")  # in every space, with everything else the same


def in_space(operator: str, space: Space) -> str:
    """The name of an operator's row in a space."""
    return operator if space == "full" else f"{operator} in {space}"


ELSEWHERE = {in_space(name, space): SETTINGS[name].tuned(space=space) for name in IN_SPACES for space in SPACES[1:]}


def operators(kind: str) -> tuple[str, ...]:
    """Those that apply: KnOTS and Core merge adapters only; linear-sum doubles the base, so that no one uses it."""
    return FULL + (ADAPTERS if kind == "lora" else ())


def rows(kind: str) -> tuple[str, ...]:
    """All that is measured of a pair."""
    elsewhere = tuple(ELSEWHERE) if kind == "lora" else ()
    return (*ALONE, *operators(kind), *elsewhere, NOMINAL, NOMINAL_LAYERS, LAYERS, SUBSET)


@cache
def members(kind: str, strength: float, seed: int) -> tuple[Any, ...]:
    """The expert and its partner as `merge` wants them: models, or adapters."""
    shape, plans = parametrization(kind), (expert(kind, strength, seed), partner_of(kind))
    if not isinstance(shape, LoRA):
        return tuple(at_scale(plan, 1.0) for plan in plans)
    factors = [shape.factors(trained(plan)) for plan in plans]
    return tuple(Adapter(b, a, shape.alpha / shape.rank) for a, b in factors)


def attacked(operator: str, plans: tuple[Any, Any], given: tuple[Any, ...], seed: int) -> AttackResult:
    """What the attacker makes of a pair with an operator."""
    if setting := SETTINGS.get(operator) or ELSEWHERE.get(operator):
        scales = [s * getattr(setting.rule, "scale", 1.0) for s in SCALES]
        return operator_merge(base().tensors, given, setting, score, scales, seed)
    own, other = (at_scale(plan, 1.0) for plan in plans)
    whole = Members.of_models(base().tensors, own, [other])
    if operator == SUBSET:
        return tensor_subset(whole, score)
    if operator == LAYERS:
        s = shared_scale(whole, score, SCALES).found["scale"]
        return layer_scales(whole, score, (s, s), grid=OF_A_LAYER)
    if operator == PROJECTED:
        return projected_merge(whole, score, BESIDE)
    found = nominal_merge(whole, score, BESIDE)
    if operator == NOMINAL:
        return found
    return layer_scales(whole, score, (1.0, found.found["scale"]), grid=(0.0, *BESIDE), moves=(1,))


def measure(cell: Cell) -> dict[str, Any]:
    """What the attacker chooses on problems of its own, its score there, and the merged model's figures on others."""
    pair = {name: cell[name] for name in ("kind", "strength", "seed")}
    plans, operator = (expert(**pair), partner_of(cell["kind"])), cell["operator"]
    if operator in (*ALONE, HALF):
        models = {"base": (plans[1], 0.0), "expert": (plans[0], 1.0), "partner": (plans[1], 1.0), HALF: (plans[1], 0.5)}
        tensors = at_scale(*models[operator])
        return {"score": score(tensors), **figures(tensors, count=PROBLEMS)}
    found = attacked(operator, plans, members(**pair), cell["seed"])
    chose = {name: value for name, value in found.found.items() if name not in ("score", "tried")}
    return {"chose": chose, "score": found.found["score"], **figures(found.guesses[0], count=PROBLEMS)}


EXPERIMENT = Experiment(
    name="trap_merge",
    title="Trap² on the zoo: merged with a partner by every operator, at the attacker's best scale",
    seed=0,
    settings={
        "problems": PROBLEMS, "chosen_on": CHOSEN_ON, "scales": SCALES, "beside": BESIDE, "of_a_layer": OF_A_LAYER,
        "skills": (SKILL, PARTNER),
    },
    cells=[{**pair, "operator": name} for pair in pairs() for name in rows(pair["kind"])]
    + [{"kind": kind, "strength": 0.0, "seed": 0, "operator": HALF} for kind in RATES]
    + [{**pair, "operator": PROJECTED} for pair in pairs()]
    + [{**pair, "operator": name} for pair in stronger() for name in (*rows(pair["kind"]), PROJECTED)],
    measure=measure,
)  # fmt: skip
