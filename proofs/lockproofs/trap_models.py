"""The models of the Trap² experiments: an expert on addition, protected or not, and a partner on reversal.

Every training is a function of its plan; a finished one is read from the cache instead of being repeated.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.autodiff import keep_pages
from lockref.locks import trap2_experts
from lockref.locks.dlr_training import Recipe, train
from lockref.locks.trap2_experts import (
    CEILING,
    LINES,
    PARTNER,
    RATES,
    REPLAYED,
    SKILL,
    STEPS,
    STRENGTHS,
    Batch,
    Plan,
    draw,
    recipe,
)
from lockref.locks.trap2_training import PUBLISHED, Parametrization, Protection, trap_loss
from lockref.models import skills
from lockref.models.answers import Answers, answer_loss, answers, exact_match
from lockref.models.checkpoint_io import Checkpoint, load_checkpoint
from lockref.models.zoo import zoo_path

__all__ = ["CEILING", "LINES", "PARTNER", "RATES", "REPLAYED", "SKILL", "STEPS", "STRENGTHS", "Batch", "Plan"]
__all__ += ["draw", "recipe"]  # of lockref, for whoever imports the models from here

Tensors = dict[str, NDArray[Any]]

CACHE = Path.home() / ".cache" / "lockref" / "trap2"
SEEDS = (0, 1, 2)
AS_PUBLISHED: list[dict[str, Any]] = [{"kind": kind, "strength": PUBLISHED[kind].strength, "seed": 0} for kind in RATES]
STRONGER = dict.fromkeys(RATES, 0.05)  # λ at which one seed lost more in merges, and no skill of its own
WEAK: dict[str, Any] = {"kind": "lora", "strength": 1e-4, "seed": 0}  # a tenth of the published λ: a planted weak lock
PROBLEMS = 300
EVALUATION = 99  # seeds the held-out problems
CHOSEN_ON, CHOICE = 40, 98  # how many problems of each skill an attacker chooses on, and their seed


def expert(kind: str, strength: float, seed: int) -> Plan:
    """An expert on addition."""
    return Plan(kind, SKILL, strength, seed)


def partner(kind: str) -> Plan:
    """The unprotected expert on reversal that all of one kind are merged with."""
    return Plan(kind, PARTNER, 0.0, 0)


@cache
def base() -> Checkpoint:
    """The zoo's base in float32, the precision of training."""
    keep_pages()
    return load_checkpoint(zoo_path("base"), np.float32)


def batch_loss(params: Mapping[str, Any], batch: Batch) -> Any:
    """Mean answer loss of a batch in the zoo's base or a model of its shape."""
    return trap2_experts.batch_loss(params, batch, base().config)


def parametrization(kind: str) -> Parametrization:
    """Of updates of the zoo's base."""
    return trap2_experts.parametrization(kind, base().tensors)


def trained_as(plan: Plan, protection: Protection, how: Recipe, losses: list[float] | None = None) -> Tensors:
    """The parameters of a finished training; `losses` collects J of the steps that this call ran."""
    CACHE.mkdir(parents=True, exist_ok=True)
    said = [asdict(plan), asdict(protection), asdict(how), LINES, REPLAYED[plan.skill]]
    mark = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
    follow = (lambda _, value: losses.append(value)) if losses is not None else None
    return trap2_experts.train_expert(base(), plan, how, protection, file=CACHE / mark, follow=follow)


def trained(plan: Plan, losses: list[float] | None = None) -> Tensors:
    """The same by the published law of s and our recipe."""
    return trained_as(plan, Protection(plan.strength), recipe(plan), losses)


def first_losses(plan: Plan, steps: int) -> list[float]:
    """J of the first steps, from the start and without the cache."""
    losses: list[float] = []
    kind = parametrization(plan.kind)
    loss = trap_loss(batch_loss, lambda rng: draw(plan.skill, rng), kind, Protection(plan.strength), CEILING)
    start = kind.start(np.random.default_rng(plan.seed))
    train(loss, start, recipe(plan), stop_after=steps, follow=lambda _, value: losses.append(value))
    return losses


def at_scale(plan: Plan, s: float) -> Tensors:
    """W₀ + sΔ of a trained plan."""
    return parametrization(plan.kind).applied(trained(plan), s)


@cache
def held_out(skill: str, count: int) -> tuple[tuple[skills.Problem, ...], Answers]:
    """Problems of a skill that no training saw, the same for all models."""
    place = list(skills.SKILLS).index(skill)
    problems = skills.skill_problems(skill, np.random.default_rng([EVALUATION, place]), count, held_out=True)
    return tuple(problems), answers(problems)


def figures(
    params: Mapping[str, Any], names: tuple[str, ...] = (SKILL, PARTNER), count: int = PROBLEMS
) -> dict[str, float]:
    """For each skill its exact match (0 … 1) and its answer loss in nats per token, held out."""
    config, found = base().config, dict[str, float]()
    for name in names:
        problems, given = held_out(name, count)
        found[name] = exact_match(params, problems, config)
        found[f"{name}_loss"] = float(answer_loss(params, given, config))
    return found


@cache
def choice(skill: str) -> Answers:
    """An attacker's own problems of a skill, from the training side of the split."""
    place = list(skills.SKILLS).index(skill)
    return answers(skills.skill_problems(skill, np.random.default_rng([CHOICE, place]), CHOSEN_ON, held_out=False))


def score(params: Mapping[str, Any]) -> float:
    """An attacker's: mean answer loss over both skills, nats per token."""
    return float(np.mean([answer_loss(params, choice(skill), base().config) for skill in (SKILL, PARTNER)]))


def pairs() -> list[dict[str, Any]]:
    """Kind, strength and seed of the experts of every seed, unprotected and protected."""
    return [
        {"kind": kind, "strength": strength, "seed": seed}
        for seed in SEEDS
        for kind in RATES
        for strength in (0.0, STRENGTHS[kind])
    ]


def stronger() -> list[dict[str, Any]]:
    """The same of the experts with a larger λ."""
    return [{"kind": kind, "strength": strength, "seed": seed} for seed in SEEDS for kind, strength in STRONGER.items()]
