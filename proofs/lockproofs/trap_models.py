"""The models of the Trap² experiments: an expert on addition, protected or not, and a partner on reversal.

Every training is a function of its plan; a finished one is read from the cache instead of being repeated.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.autodiff import keep_pages
from lockref.locks.dlr_training import Recipe, train
from lockref.locks.trap2_training import PUBLISHED, Full, LoRA, Parametrization, Protection, protect, trap_loss
from lockref.models import skills
from lockref.models.answers import Answers, answer_loss, answers, exact_match
from lockref.models.checkpoint_io import Checkpoint, load_checkpoint
from lockref.models.zoo import zoo_path

Tensors = dict[str, NDArray[Any]]

CACHE = Path.home() / ".cache" / "lockref" / "trap2"
SKILL, PARTNER = "add", "reverse"
LINES = 48  # problems of the skill in each batch
REPLAYED = {SKILL: 16, PARTNER: 4}  # of the other one: without these merges fail, with many a partner learns both
RATES = {"full": 6e-4, "lora": 2e-3}
STEPS = 300
SEEDS = (0, 1)
STRENGTHS = {"full": 0.02, "lora": 0.05}  # of the protected experts: the published ones show less
WEAK: dict[str, Any] = {"kind": "lora", "strength": PUBLISHED["lora"].strength, "seed": 0}  # as published, beside them
CEILING = float(np.log(256))  # nats of a uniform guess
PROBLEMS = 300
EVALUATION = 99  # seeds the held-out problems
CHOSEN_ON, CHOICE = 40, 98  # how many problems of each skill an attacker chooses on, and their seed


@dataclass(frozen=True)
class Plan:
    """One training: what is trained on which skill, and how strongly it is protected."""

    kind: str  # full, lora
    skill: str
    strength: float
    seed: int


def expert(kind: str, strength: float, seed: int) -> Plan:
    """An expert on addition."""
    return Plan(kind, SKILL, strength, seed)


def partner(kind: str) -> Plan:
    """The unprotected expert on reversal that all of one kind are merged with."""
    return Plan(kind, PARTNER, 0.0, 0)


@dataclass(frozen=True)
class Batch:
    skill: Answers
    replayed: Answers
    share: float  # of the skill's problems


@cache
def base() -> Checkpoint:
    """The zoo's base in float32, the precision of training."""
    keep_pages()
    return load_checkpoint(zoo_path("base"), np.float32)


def other(skill: str) -> str:
    return PARTNER if skill == SKILL else SKILL


def draw(skill: str, rng: np.random.Generator) -> Batch:
    """A batch of training problems of a skill, and a few of the other one."""
    counts = {skill: LINES, other(skill): REPLAYED[skill]}
    own, replayed = (answers(skills.skill_problems(name, rng, n, held_out=False)) for name, n in counts.items())
    return Batch(own, replayed, LINES / sum(counts.values()))


def batch_loss(params: Mapping[str, Any], batch: Batch) -> Any:
    """Mean answer loss, the two parts weighted by their number of problems."""
    config, share = base().config, batch.share
    return answer_loss(params, batch.skill, config) * share + answer_loss(params, batch.replayed, config) * (1 - share)


def parametrization(kind: str) -> Parametrization:
    tensors = base().tensors
    return Full(tensors) if kind == "full" else LoRA(tensors, tuple(n for n in tensors if n.endswith("_proj.weight")))


def recipe(plan: Plan) -> Recipe:
    """The published AdamW, with a rate for a tiny model and few steps."""
    return Recipe(STEPS, RATES[plan.kind], plan.seed, betas=(0.9, 0.98), eps=1e-6, clip=1.0)


def trained(plan: Plan, losses: list[float] | None = None) -> Tensors:
    """The parameters of a finished training; `losses` collects J of the steps that this call ran."""
    CACHE.mkdir(parents=True, exist_ok=True)
    data = [LINES, REPLAYED[plan.skill]]
    mark = hashlib.sha256(json.dumps([asdict(plan), asdict(recipe(plan)), *data]).encode()).hexdigest()[:16]
    state = protect(
        batch_loss, lambda rng: draw(plan.skill, rng), parametrization(plan.kind), Protection(plan.strength),
        recipe(plan), ceiling=CEILING, about=f"{plan} {data[0]}+{data[1]}", file=CACHE / mark,
        follow=lambda _, value: losses.append(value) if losses is not None else None,
    )  # fmt: skip
    return state.params


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
