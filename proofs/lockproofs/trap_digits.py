"""The models of the Trap² experiment without attention: an expert on the digits 0 … 4, and a partner on 5 … 9.

Every seed has a base of its own, trained so briefly on all ten digits that each half is worth learning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.digits import NET, Images, accuracy, images, loss
from lockref.attacks.recovery import recover
from lockref.locks.dlr_training import Recipe, train
from lockref.locks.trap2_training import PUBLISHED, Full, LoRA, Parametrization, Protection, protect
from lockref.models import convnet

Tensors = dict[str, NDArray[Any]]

SKILL, PARTNER = "0-4", "5-9"
DIGITS = {SKILL: range(5), PARTNER: range(5, 10)}
BATCH = 64
REPLAYED = 2  # of a batch from the other half: with none an expert's own half is all that it ever answers
BASE = {"steps": 6, "rate": 3e-3}
STEPS = 300
RATES = {"full": 1e-3, "lora": 3e-3}
RANK, ALPHA = 4, 8.0
SEEDS = (5, 6, 7, 8, 9)  # TRAP-AGNOSTIC's rule was made while looking at 0 to 4
STRENGTHS = {kind: (published.strength, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8) for kind, published in PUBLISHED.items()}
CEILING = float(np.log(NET.classes)) + 0.1  # nats of a uniform guess, with which a base of six steps may begin
RECOVERY = {"steps": 10, "rate": 1e-3, "images": 32}  # of each step, from an attacker's own


@dataclass(frozen=True)
class Plan:
    """One training: an update of a kind, on one half of the digits, how strongly protected, from which base."""

    kind: str  # full, lora
    strength: float
    seed: int
    skill: str = SKILL
    order: int = 0  # another one draws the batches in another order


def partner(plan: Plan) -> Plan:
    """The unprotected expert on the other half, of the same kind and base, that an expert is merged with."""
    return Plan(plan.kind, 0.0, plan.seed, PARTNER)


def recipe(steps: int, rate: float, *seed: int) -> Recipe:
    """The published AdamW; the seed is made of all numbers given."""
    whole = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return Recipe(steps, rate, whole, betas=(0.9, 0.98), eps=1e-6, clip=1.0)


def draw(skill: str, rng: np.random.Generator) -> Images:
    """A training batch of one half, with a few images of the other one."""
    (other,) = DIGITS.keys() - {skill}
    own, replayed = (images("training").of(DIGITS[name]) for name in (skill, other))
    return own.draw(rng, BATCH - REPLAYED).beside(replayed.draw(rng, REPLAYED))


@cache
def base(seed: int) -> Tensors:
    start = convnet.initialize(NET, np.random.default_rng([seed, 0]))
    plan = recipe(int(BASE["steps"]), BASE["rate"], seed, 0)
    return train(lambda params, rng: loss(params, images("training").draw(rng, BATCH)), start, plan).params


def parametrization(kind: str, seed: int) -> Parametrization:
    return Full(base(seed)) if kind == "full" else LoRA(base(seed), NET.matrices, RANK, ALPHA)


@cache
def trained(plan: Plan) -> Tensors:
    """The parameters of a finished training. Raises FloatingPointError where it diverges."""
    steps = recipe(STEPS, RATES[plan.kind], plan.seed, 1 + plan.order)
    kind, protection = parametrization(plan.kind, plan.seed), Protection(plan.strength)
    return protect(loss, lambda rng: draw(plan.skill, rng), kind, protection, steps, ceiling=CEILING).params


def at_scale(plan: Plan, s: float) -> Tensors:
    """W₀ + sΔ of a trained plan."""
    return parametrization(plan.kind, plan.seed).applied(trained(plan), s)


def figures(params: Mapping[str, Any]) -> dict[str, float]:
    """For each half its accuracy (0 … 1) and its loss in nats, held out."""
    found = dict[str, float]()
    for name, digits in DIGITS.items():
        given = images("held out").of(digits)
        found |= {name: accuracy(params, given), f"{name}_loss": float(loss(params, given))}
    return found


def score(params: Mapping[str, Any]) -> float:
    """An attacker's: mean loss over both halves, on images of its own."""
    return float(np.mean([loss(params, images("choice").of(digits)) for digits in DIGITS.values()]))


def recovered(params: Tensors, seed: int) -> Tensors:
    """A model after a short fine-tune on an attacker's own images."""
    count, plan = int(RECOVERY["images"]), recipe(int(RECOVERY["steps"]), RECOVERY["rate"], seed, 9)
    return dict(recover(params, loss, lambda rng: images("choice").draw(rng, count), plan).guesses[0])
