"""DLR-FINETUNE: a grid of learning rates on the original, its locked forms, and a planted lock that does hinder."""

import hashlib
import math
from functools import cache
from typing import Any, Final

import numpy as np

from lockproofs.experiments.store import Cell, Experiment
from lockref.attacks.finetune import Model, finetune, step_cost
from lockref.autodiff import keep_pages
from lockref.locks import full
from lockref.locks.dlr import locked_block
from lockref.locks.dlr_training import Recipe
from lockref.models import skills
from lockref.models.checkpoint_io import WEIGHTS, load_checkpoint
from lockref.models.zoo import zoo_path

SEED: Final = 0
SKILL: Final = "add"
STEPS, BATCH, EVERY, HELD_OUT = 200, 16, 10, 64
RATES: Final = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
FEWER_TENSORS: Final = {"all": 1, "attention": 2, "mlp": 2, "lora": 16}  # train at so many times these rates
SEEDS: Final = (0, 1, 2)
FRESH_SEEDS: Final = (3, 4, 5)  # of the null control
PLANTED_SCALE: Final = 16.0  # a power of two: the planted lock computes the same bits
PLANTED: Final = {"up_proj": 1 / PLANTED_SCALE, "down_proj": PLANTED_SCALE, "v_proj": 1 / PLANTED_SCALE,
                  "o_proj": PLANTED_SCALE}  # fmt: skip

RUNS: Final = (  # model, what trains, its rates, seeds; fresh seeds at the best rate found and its neighbors
    ("original", "all", RATES, SEEDS),
    ("original", "attention", RATES, SEEDS),
    ("planted", "all", RATES[:3], SEEDS),
    ("dlr-16", "all", RATES, SEEDS),
    ("original", "all", RATES[2:], FRESH_SEEDS),
    ("dlr-16", "all", RATES[1:4], FRESH_SEEDS),
    ("dlr-16", "attention", RATES, SEEDS),
    ("dlr-16", "lora", RATES, SEEDS),
    ("dlr-16", "mlp", RATES, SEEDS),
    ("original", "lora", RATES, SEEDS),
    ("original", "mlp", RATES, SEEDS),
)


@cache
def model(name: str) -> Model:
    """The zoo's base, float32, as it is ("original"), with tensors out of scale ("planted"), or a locked form."""
    if name.startswith("dlr"):
        locked = full.load(_folder(name), np.float32)
        return Model(locked.tensors, locked.config, locked_block(locked.net))
    base = load_checkpoint(_folder(name), np.float32)
    if name == "original":
        return Model(base.tensors, base.config)
    scales = {n: next((s for part, s in PLANTED.items() if part in n), 1.0) for n in base.tensors}
    return Model({n: w * np.float32(scales[n]) for n, w in base.tensors.items()}, base.config)


def _folder(name: str) -> Any:
    return zoo_path("base").parent / (name if name.startswith("dlr") else "base")


def digest(name: str) -> str:
    """SHA-256 of the weights that a model was made from."""
    return hashlib.sha256((_folder(name) / WEIGHTS).read_bytes()).hexdigest()


@cache
def _fixed(name: str, trained: str) -> dict[str, Any]:
    """What all cells of a model and an attacker share: the file it came from, and the cost of a step."""
    return {"sha256": digest(name), **step_cost(model(name), SKILL, trained, BATCH, SEED)}


def problems() -> list[skills.Problem]:
    """The held-out problems that every loss is measured on."""
    return skills.skill_problems(SKILL, np.random.default_rng([SEED, 1]), HELD_OUT, held_out=True)


def measure(cell: Cell, stop_after: int | None = None) -> dict[str, Any]:
    """One run: held-out losses in nats (null once it diverged), exact match, and the cost of a step."""
    keep_pages()
    result = finetune(
        model(cell["model"]), SKILL, cell["trained"], Recipe(STEPS, cell["rate"], cell["seed"]), problems(),
        batch=BATCH, every=EVERY, stop_after=stop_after,
    )  # fmt: skip
    losses = [round(loss, 6) if math.isfinite(loss) else None for loss in result.found["held_out"]]
    return {
        "held_out": losses,
        "exact_match": result.found["exact_match"],
        "diverged_at": result.found["diverged_at"],
        **_fixed(cell["model"], cell["trained"]),
    }


EXPERIMENT: Final = Experiment(
    name="dlr_finetune",
    title="Fine-tuning of original and locked models over a grid of learning rates",
    seed=SEED,
    settings={"skill": SKILL, "steps": STEPS, "problems": BATCH, "every": EVERY, "held_out_problems": HELD_OUT,
              "planted": PLANTED, "optimizer": "adamw", "schedule": "5 % warm-up, cosine to zero, norm clipped at 1"},
    cells=[
        {"model": name, "trained": trained, "rate": FEWER_TENSORS[trained] * rate, "seed": seed}
        for name, trained, rates, seeds in RUNS
        for rate in rates
        for seed in seeds
    ],
    measure=measure,
)  # fmt: skip
