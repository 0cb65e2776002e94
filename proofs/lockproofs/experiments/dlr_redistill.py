"""DLR-REDISTILL: SwiGLUs distilled from DLR-Nets at fractions of what it cost to distill those from the SwiGLUs."""

from functools import cache
from typing import Any, Final

import numpy as np

from lockproofs.experiments.store import Cell, Experiment
from lockref.attacks.redistill import cost, redistill
from lockref.autodiff.pages import keep_pages
from lockref.locks.distillation import Phases, captured, distill_module, dlr_student, swiglu_student
from lockref.locks.dlr_run import data
from lockref.locks.dlr_training import Recipe
from lockref.locks.full import Locked, load
from lockref.locks.manifest import read_manifest
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.evaluation import evaluate
from lockref.models.zoo import zoo_path

SEED: Final = 1  # not the defender's: the attacker draws tokens of its own
ROWS, HELD_OUT, LENGTH = 4096, 64, 128
RATES: Final = (2e-2, 3e-3)  # of the two phases, as the defender's
CAPTURED: Final = 256
MEASURED: Final[dict[str, Any]] = {"problems": 300, "windows": 64, "length": 192}
DEFENDER: Final = "dlr-16"  # whose steps the budgets are fractions of


def phases(cell: Cell) -> Phases:
    """The attacker's steps: the stated fraction of the defender's in both phases."""
    made = read_manifest(zoo_path(DEFENDER)).parts["dlr"]
    first, second = (
        Recipe(max(1, round(cell["fraction"] * made[part]["steps"])), rate, SEED)
        for part, rate in zip(("modules", "model"), RATES, strict=True)
    )
    return Phases(first, second, captured=CAPTURED)


def defense(name: str) -> Phases:
    """How the defender distilled a locked zoo model, as its manifest says."""
    part = read_manifest(zoo_path(name)).parts["dlr"]
    recipes = [Recipe(**{**part[key], "betas": tuple(part[key]["betas"])}) for key in ("modules", "model")]
    return Phases(recipes[0], recipes[1], *(part[key] for key in ("captured", "activations", "tokens")))


@cache
def rows() -> tuple[Any, Any]:
    """The attacker's tokens to learn from, and held-out ones."""
    rng = np.random.default_rng(SEED)
    return data(ROWS, LENGTH, rng, False), data(HELD_OUT, LENGTH, rng, True)


@cache
def locked(name: str) -> Locked:
    """A locked zoo model in the precision in which everything trains here."""
    keep_pages()
    return load(zoo_path(name), np.float32)


def measure(cell: Cell) -> dict[str, Any]:
    """The attack at one budget: what the teacher can do, what the attacker's model can do, and counted costs."""
    keep_pages()
    base, model, budget = load_checkpoint(zoo_path("base"), np.float32), locked(cell["model"]), phases(cell)
    config, swiglu, net = model.config, swiglu_student(model.config), dlr_student(model.net)
    attack = redistill(model.tensors, config, model.net, budget, *rows())
    return {
        "first_losses": first_losses(cell),
        "steps": [budget.modules.steps, budget.model.steps],
        "relative_error": attack.found["errors"],
        "row_error": attack.found["row_errors"],
        "original": evaluate(base.tensors, config, **MEASURED),
        "teacher": evaluate(model.tensors, config, net.block, **MEASURED),
        "attacker": evaluate(attack.guesses[0], config, **MEASURED),
        "operations": cost(model.tensors, config, net, swiglu, budget, LENGTH),
        "defender_operations": cost(base.tensors, config, swiglu, net, defense(cell["model"]), LENGTH),
    }


def first_losses(cell: Cell, steps: int = 4) -> list[float]:
    """Losses of the first steps of phase 1, first module: the cheapest part of a cell to run again."""
    model, budget, losses = locked(cell["model"]), phases(cell), list[float]()
    seen = captured(model.tensors, rows()[0][: budget.captured], model.config, teacher=dlr_student(model.net))
    distill_module(
        *next(seen), swiglu_student(model.config), budget.modules, rows=budget.activations, stop_after=steps,
        follow=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    return losses


EXPERIMENT: Final = Experiment(
    name="dlr_redistill",
    title="Re-distillation of locked models at fractions of the defender's steps",
    seed=SEED,
    settings={
        "rows": ROWS, "held_out": HELD_OUT, "length": LENGTH, "rates": list(RATES), "captured": CAPTURED,
        "measured": MEASURED, "reference": DEFENDER,
    },
    cells=[{"model": DEFENDER, "fraction": fraction} for fraction in (1 / 8, 3 / 8)],
    measure=measure,
)  # fmt: skip
