"""FULL-PIPELINE's other half: the released model, undone or as it is, fine-tuned on a skill over a grid of rates.

The models are those of `full_pipeline`: the expert "add", the full lock on it, and what an attacker makes of the lock.
All learn "reverse" with the same problems, steps, rates and optimizer. The planted weak lock is the expert with tensors
out of scale, which computes the same bits and hinders training; the public base gives the scales away.
"""

import math
from functools import cache
from typing import Any, Final

import numpy as np

from lockproofs.experiments import full_pipeline
from lockproofs.experiments.dlr_finetune import PLANTED
from lockproofs.experiments.store import Cell, Experiment
from lockref.attacks.finetune import Model, finetune, step_cost
from lockref.autodiff import keep_pages
from lockref.locks.dlr_training import Recipe
from lockref.models import skills
from lockref.models.answers import exact_match

SEED: Final = 0
SKILL: Final = "reverse"
STEPS, BATCH, EVERY, HELD_OUT = 200, 16, 20, 64
RATES: Final = (5e-4, 1e-3, 2e-3, 4e-3)
SEEDS: Final = (0, 1, 2, 3)
CONTROL_SEEDS: Final = SEEDS[:2]
FRESH_SEEDS: Final = tuple(range(4, 20))  # at the rates that the others had found best
MODELS: Final = {
    "unlocked": "the expert without any lock: what the lock is measured against",
    "base": "the public base, which everybody has",
    "locked": "the full lock as it is released",
    "pipeline": "planes undone, DLR-Nets distilled back from the base's SwiGLUs",
    "planted": "planted weak lock: the expert's bits with tensors out of scale, as it is released",
    "planted, undone": "power control: its tensors scaled back by the base's norms",
    "shuffled": "null control: the lock's data without its function, every tensor of the expert shuffled",
}

RUNS: Final = (  # model, its rates, seeds
    ("unlocked", RATES, SEEDS),
    ("locked", RATES, SEEDS),
    ("pipeline", RATES, SEEDS),
    ("base", RATES[1:], CONTROL_SEEDS),
    ("planted", (2.5e-4, *RATES[:2]), CONTROL_SEEDS),
    ("planted, undone", RATES[1:2], CONTROL_SEEDS[:1]),
    ("shuffled", RATES[1:], CONTROL_SEEDS),
    ("unlocked", RATES[2:3], FRESH_SEEDS),
    ("pipeline", RATES[2:3], FRESH_SEEDS),
)


@cache
def model(name: str) -> Model:
    """A model of `MODELS`, float32, with the function of its layers. Raises KeyError for another name."""
    base, config = full_pipeline.public("base")
    expert, _ = full_pipeline.public("add")
    match name:
        case "unlocked":
            return Model(expert, config)
        case "base":
            return Model(base, config)
        case "locked":
            return Model(full_pipeline.released()[0], config, full_pipeline.composition(config).block)
        case "pipeline":
            return Model(full_pipeline.candidate("pipeline"), config)
        case "planted":
            return Model({n: w * np.float32(_scale(n)) for n, w in expert.items()}, config)
        case "planted, undone":
            return Model(scaled_back(model("planted").tensors, base), config)
        case "shuffled":
            return Model(full_pipeline.scrambled(expert), config)
        case _:
            raise KeyError(f"no model {name!r}; choose from {', '.join(MODELS)}")


def _scale(name: str) -> float:
    return next((scale for part, scale in PLANTED.items() if part in name), 1.0)


def scaled_back(released: full_pipeline.Tensors, base: full_pipeline.Tensors) -> full_pipeline.Tensors:
    """Each tensor times the power of two that brings its norm nearest to the base's: exact."""
    ratios = {n: np.linalg.norm(base[n]) / np.linalg.norm(w) for n, w in released.items()}
    return {n: w * np.float32(2.0 ** round(math.log2(ratios[n]))) for n, w in released.items()}


def problems(skill: str = SKILL) -> list[skills.Problem]:
    """The held-out problems that every model is measured on."""
    return skills.skill_problems(skill, np.random.default_rng([SEED, 1]), HELD_OUT, held_out=True)


@cache
def _fixed(name: str) -> dict[str, int]:
    return step_cost(model(name), SKILL, "all", BATCH, SEED)


def measure(cell: Cell, stop_after: int | None = None) -> dict[str, Any]:
    """One run: held-out losses in nats (null once it diverged), exact match, "add" after it, and the cost of a step."""
    keep_pages()
    given = model(cell["model"])
    result = finetune(
        given, SKILL, cell["trained"], Recipe(STEPS, cell["rate"], cell["seed"]), problems(), batch=BATCH, every=EVERY,
        stop_after=stop_after,
    )  # fmt: skip
    return {
        "held_out": [round(loss, 6) if math.isfinite(loss) else None for loss in result.found["held_out"]],
        "exact_match": result.found["exact_match"],
        "add": exact_match(result.guesses[0], problems("add"), given.config, given.block),
        "diverged_at": result.found["diverged_at"],
        **_fixed(cell["model"]),
    }


EXPERIMENT: Final = Experiment(
    name="full_finetune",
    title="The full lock on a zoo expert, as it is and undone part by part, then fine-tuned",
    seed=SEED,
    settings={"models": MODELS, "skill": SKILL, "steps": STEPS, "problems": BATCH, "every": EVERY,
              "held_out_problems": HELD_OUT, "planted": PLANTED, "optimizer": "adamw",
              "schedule": "5 % warm-up, cosine to zero, norm clipped at 1"},
    cells=[
        {"model": name, "trained": "all", "rate": rate, "seed": seed}
        for name, rates, seeds in RUNS
        for rate in rates
        for seed in seeds
    ],
    measure=measure,
)  # fmt: skip
