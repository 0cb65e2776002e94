"""Experts on the zoo's skills, trained with Trap² or without: batches, parametrization, recipe.

An expert learns one skill and sees a few problems of the other, without which nothing merges, locked or not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.locks.dlr_training import Follow, Recipe
from lockref.locks.trap2_training import PUBLISHED, Full, LoRA, Parametrization, Protection, protect
from lockref.models import skills
from lockref.models.answers import Answers, answer_loss, answers
from lockref.models.checkpoint_io import Checkpoint
from lockref.models.qwen3_config import Qwen3Config

Arrays = dict[str, NDArray[Any]]

SKILL, PARTNER = "add", "reverse"
LINES = 48  # problems of the skill in each batch
REPLAYED = {SKILL: 16, PARTNER: 2}  # of the other one: with many a partner learns both
RATES = {"full": 6e-4, "lora": 2e-3}  # for a tiny model and few steps: the published ones hardly move it
STEPS = 600
STRENGTHS = {"full": 0.02, "lora": 0.02}  # of protected experts, above the published ones
CEILING = float(np.log(256))  # nats of a uniform guess: training stops above


@dataclass(frozen=True)
class Plan:
    """One training: what is trained on which skill, and how strongly it is protected."""

    kind: str  # full, lora
    skill: str
    strength: float
    seed: int


@dataclass(frozen=True)
class Batch:
    skill: Answers
    replayed: Answers
    share: float  # of the skill's problems


def other(skill: str) -> str:
    """The skill that an expert on `skill` sees little of."""
    return PARTNER if skill == SKILL else SKILL


def draw(skill: str, rng: np.random.Generator) -> Batch:
    """A batch of training problems of a skill, and a few of the other one."""
    counts = {skill: LINES, other(skill): REPLAYED[skill]}
    own, replayed = (answers(skills.skill_problems(name, rng, n, held_out=False)) for name, n in counts.items())
    return Batch(own, replayed, LINES / sum(counts.values()))


def batch_loss(params: Mapping[str, Any], batch: Batch, config: Qwen3Config) -> Any:
    """Mean answer loss in nats per token, the two parts weighted by their number of problems."""
    share = batch.share
    return answer_loss(params, batch.skill, config) * share + answer_loss(params, batch.replayed, config) * (1 - share)


def parametrization(kind: str, tensors: Mapping[str, NDArray[Any]]) -> Parametrization:
    """Updates of all tensors, or of rank 8 for every projection. Raises ValueError for another kind."""
    if kind not in RATES:
        raise ValueError(f"kind {kind!r}; choose from {', '.join(RATES)}")
    return Full(tensors) if kind == "full" else LoRA(tensors, tuple(n for n in tensors if n.endswith("_proj.weight")))


def recipe(plan: Plan, steps: int = STEPS) -> Recipe:
    """The published AdamW, with our rate and number of steps."""
    given = PUBLISHED[plan.kind]
    return Recipe(steps, RATES[plan.kind], plan.seed, betas=given.betas, eps=given.eps, clip=given.clip)


def train_expert(
    base: Checkpoint,
    plan: Plan,
    how: Recipe,
    protection: Protection,
    *,
    file: Path | None = None,
    save_every: int = 100,
    follow: Follow | None = None,
) -> Arrays:
    """The update's parameters after training; resumable bit for bit by `file`, as `protect` is."""
    state = protect(
        lambda params, batch: batch_loss(params, batch, base.config), lambda rng: draw(plan.skill, rng),
        parametrization(plan.kind, base.tensors), protection, how, ceiling=CEILING,
        about=f"{plan} {LINES}+{REPLAYED[plan.skill]}", file=file, save_every=save_every, follow=follow,
    )  # fmt: skip
    return state.params
